#!/bin/bash
# run.sh [-quick] [NAME...] boots the kernels of kernels.list, or those named, one after the
# other, runs the tests there, and prints what `go test -json` would. Where kernels.list says
# "refuses" it only looks whether the refusal says why. -quick leaves out what hardly depends
# on the kernel. Needs bin/ built, and what `tools/deps kernels` installs. PACKAGES says which
# tests (folders); TESTFLAGS are more of their flags (-test.run=...).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
packages=${PACKAGES:-tests/packet datapath/maps datapath/loader tests/node}
quick= logic=
if [ "${1:-}" = -quick ]; then
	shift
	quick='^Test(Attach|Filters|Kernel|SCTP|Revocation$|AgentKilled|DelAndAddressReuse)'
	packages="tests/packet datapath/loader tests/node"
	logic='^Test(Greedy|NextPod|ICMPErrors|FragmentsHave|RevocationOn|Revoked|FlowsOfAChanged|Timeouts|Mirrored|SYNOn)'
fi
limit=1800 # seconds a guest has
work=$(mktemp -d "${TMPDIR:-/tmp}/weir-kernels.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# with_libraries PROGRAM... puts dynamic programs of this machine into the guest's root.
with_libraries() {
	local program file
	for program; do
		program=$(command -v "$program")
		for file in "$program" $(ldd "$program" | grep -oE '/[^ )]+'); do
			mkdir -p "$root$(dirname "$file")"
			cp -Lf "$file" "$root$file"
		done
	done
}

# make_root makes the guest's root in $root: test binaries in their packages' folders, so
# that they find what lies beside them, and the script that runs them.
make_root() {
	local package
	root=$work/root
	mkdir -p "$root/src/bin"
	find bin -maxdepth 1 -type f -exec cp -t "$root/src/bin/" {} +
	with_libraries ip bash awk rm nft
	for package in $packages; do
		mkdir -p "$root/src/$package"
		CGO_ENABLED=0 go test -c -trimpath -tags sctp -o "$root/src/$package/test" "./$package"
		[ ! -d "$package/testdata" ] || cp -r "$package/testdata" "$root/src/$package/"
	done
	mkdir -p "$root/src/tests/lab"
	cp tests/lab/clean.sh "$root/src/tests/lab/"
}

# script EXPECTED prints /src/run for a kernel.
script() {
	local package flags names
	echo '#!/bin/sh'
	echo 'export CI=1; status=0'
	[ "$1" = works ] || local packages=datapath/loader quick='^TestKernel'
	for package in $packages; do
		names=$quick
		[ "$package" != tests/packet ] || names= # most of it depends on the kernel
		flags="-test.v=test2json -test.timeout=${limit}s ${names:+-test.run='$names'} ${logic:+-test.skip='$logic'} ${TESTFLAGS:-}"
		echo "cd /src/$package; echo begin $package; ./test $flags || status=1; echo; echo end $package"
	done
	echo 'exit $status'
}

# json NAME turns the guest's output into events, with the kernel's name for the module's.
json() {
	local line
	exec 4>&2
	while IFS= read -r line; do
		case $line in
		'begin '*) exec 4> >(go tool test2json -t -p "$1/${line#begin }") ;;
		'end '*) exec 4>&2 && wait $! ;;
		*) echo "$line" >&4 ;;
		esac
	done
}

make_root
failed=0
while read -r name suite version expected <&3; do
	case $name in '' | '#'*) continue ;; esac
	[ $# = 0 ] || [[ " $* " = *" $name "* ]] || continue
	kernel=$("$here/fetch.sh" "$suite" "$version")
	echo "kernel $name: $(cat "$kernel/version")" >&2
	script "$expected" >"$root/src/run"
	chmod +x "$root/src/run"
	"$here/guest.sh" "$kernel" "$root" "$limit" | json "$name" || failed=1
done 3<"$here/kernels.list"
exit $failed
