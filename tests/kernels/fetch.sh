#!/bin/bash
# fetch.sh SUITE VERSION prints the folder of Debian's newest cloud kernel whose version begins
# with VERSION: vmlinuz, version and lib/modules, in the cache, nothing installed. SUITE is
# looked up on the mirror that this machine's apt uses, without changing its sources; - is
# what the machine has. A kernel in the cache is not looked for again: remove it to renew it.
set -euo pipefail
suite=$1 want=$2 flavour=cloud-amd64
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weir-kernels
kernel=$cache/${suite/#-/system}-$want
[ ! -e "$kernel/version" ] || { echo "$kernel"; exit 0; }

mkdir -p "$cache"
work=$(mktemp -d "$cache/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{debs,root,lists/partial}

apt=(-o APT::Sandbox::User=root) # the cache is not for _apt
if [ "$suite" != - ]; then
	. /etc/os-release
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Release: $VERSION_CODENAME" | head -1)
	[ -n "$mirror" ] || { echo "fetch.sh: apt has no mirror of $VERSION_CODENAME" >&2; exit 1; }
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
	apt+=(-o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o Acquire::Languages=none)
fi
update() { apt-get -qq "${apt[@]}" update >&2; }
newest() {
	apt-cache "${apt[@]}" pkgnames "linux-image-$want" |
		grep -E "^linux-image-${want//./\\.}(\.[0-9]+)*[-+~][^-]*(-[0-9]+)?-$flavour\$" | grep -v -- -rt- | sort -V | tail -1
}
[ "$suite" = - ] || update
image=$(newest) || { update; image=$(newest); } || { echo "fetch.sh: no kernel $want in $suite" >&2; exit 1; }
version=${image#linux-image-}

# Later images are empty: the kernel and its modules are packages of their own.
parts=$(apt-cache "${apt[@]}" depends "$image" | sed -nE 's/^ *Depends: (linux-(binary|modules)-.*)/\1/p')
download() { (cd "$work/debs" && apt-get -qq "${apt[@]}" download "$image" $parts); }
download || { update; download; } # a list may be older than the mirror
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done

# first TEST PATH... prints the first path of that kind.
first() {
	local kind=$1 path
	shift
	for path; do
		[ ! "$kind" "$path" ] || { echo "$path"; return; }
	done
}
cd "$work/root"
modules=$(first -d lib/modules/"$version" usr/lib/modules/"$version")
mkdir -p "$work/kernel/lib/modules"
cp "$(first -f "boot/vmlinuz-$version" "$modules/vmlinuz")" "$work/kernel/vmlinuz"
mv "$modules" "$work/kernel/lib/modules/$version"
cd "$work/kernel"
find lib -name '*.ko.xz' -exec xz -d {} +
find lib -name '*.ko.zst' -exec zstd -qd --rm {} +
depmod -b . "$version" 2> >(grep -v WARNING >&2)
echo "$version" >version
mv -T "$work/kernel" "$kernel" 2>/dev/null || [ -e "$kernel/version" ] # another run was first
echo "$kernel"
