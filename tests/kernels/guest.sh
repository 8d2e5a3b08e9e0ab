#!/bin/bash
# guest.sh KERNEL ROOT SECONDS boots a kernel (a folder of fetch.sh's) in a throw-away virtual
# machine without a network, whose whole root is in memory: busybox, the modules of modules.list,
# and the folder ROOT. It runs /src/run there, copies its output here and exits as it did;
# 124 = it took too long, 125 = the guest ended without a word (a panic). Emulated, so
# that it works where virtualisation does not.
set -euo pipefail
kernel=$1 root=$2 limit=$3
here=$(cd "$(dirname "$0")" && pwd)
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
version=$(cat "$kernel/version")
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-guest.XXXXXX")
emulator=
on_exit() {
	[ -z "$emulator" ] || kill "$emulator" 2>/dev/null || true
	rm -rf "$work"
}
trap on_exit EXIT
trap 'exit 130' INT TERM

base=$work/base modules=lib/modules/$version
mkdir -p "$base"/{bin,sbin,usr/bin,usr/sbin,proc,sys,dev,root,"$modules"}
cp "$(command -v busybox)" "$base/bin/busybox"
busybox --list-full | grep -vx bin/busybox | while read -r applet; do ln -s /bin/busybox "$base/$applet"; done
cp "$here/init" "$base/init"
sed 's/#.*//' "$here/modules.list" | while read -r module; do
	[ -z "$module" ] || modprobe -S "$version" -d "$kernel" -q --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
done | sort -u | while read -r file; do
	(cd "$kernel" && cp --parents "${file#"$kernel/"}" "$base")
done
cp "$kernel/$modules"/modules.builtin* "$base/$modules/"
cp "$kernel/$modules/modules.order" "$base/$modules/" 2>/dev/null || true # not in every package
depmod -b "$base" "$version" 2> >(grep -v WARNING >&2)
# The kernel unpacks the second archive over the first.
for tree in "$base" "$root"; do
	(cd "$tree" && find . -mindepth 1 | cpio -o -H newc --quiet -R 0:0)
done >"$work/initrd"
rm -rf "$base"

# The emulated TSC runs wild under load: HPET is the clock. Emulation is slow: no watchdogs,
# no mitigations, and quick grace periods, which namespaces and maps wait for.
append="console=ttyS0 quiet loglevel=3 panic=-1 nokaslr mitigations=off nowatchdog tsc=unstable clocksource=hpet
	no_timer_check rcupdate.rcu_expedited=1 random.trust_cpu=on net.ifnames=0"
timeout -k 5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi,tb-size=512 -cpu max,la57=off -smp 2 -m 2048 \
	-machine pc,usb=off,vmport=off,hpet=on -nodefaults -no-user-config -display none -no-reboot -nic none \
	-serial stdio -serial "file:$work/result" \
	-kernel "$kernel/vmlinuz" -initrd "$work/initrd" -append "${append//$'\n'/ }" </dev/null &
emulator=$!
status=0
wait "$emulator" || status=$?
emulator=
said=$(tr -d '\r' <"$work/result" | sed -n 's/^exit //p')
[ -z "$said" ] || exit "$said"
case $status in
124 | 137) echo "guest.sh: $version ran past $limit s" >&2; exit 124 ;;
*) echo "guest.sh: $version ended without a result (emulator: $status)" >&2; exit 125 ;;
esac
