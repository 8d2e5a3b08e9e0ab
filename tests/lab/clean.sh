#!/bin/bash
# clean.sh PREFIX RUN removes what a run left, crashed or not: the network namespaces whose
# names begin with PREFIX with every process in them, the file systems mounted below paths
# that begin with RUN, and those paths. Nothing there is no error.
set -uo pipefail
prefix=$1 run=$2
[[ $prefix == weir?*- && $run == /run/weir?* ]] || { echo "clean.sh: refusing prefix $prefix and path $run" >&2; exit 2; }

names=$(cd /run/netns 2>/dev/null && ls -d "$prefix"* 2>/dev/null)
for name in $names; do
	pids=$(ip netns pids "$name" 2>/dev/null)
	[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
done
for name in $names; do
	ip netns del "$name" 2>/dev/null
done
awk -v run="$run" 'index($5, run) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do
	umount -l "$mount"
done
rm -rf --one-file-system "$run"*
