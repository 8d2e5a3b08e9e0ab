#!/usr/bin/env bash
# clean.sh PREFIX removes what a killed run of tests/cluster/installed left, once tests/lab/clean.sh
# has ended the processes in its network namespaces: cgroups and files whose names begin so.
set -uo pipefail
prefix=$1
[[ $prefix == weirt-* ]] || { echo "clean.sh: refusing prefix $prefix" >&2; exit 2; }
for group in "/sys/fs/cgroup/$prefix"* /sys/fs/cgroup/*/"$prefix"*; do
  [ -d "$group" ] || continue
  for _ in $(seq 50); do # until the last process is gone
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "$group" ] || break
    sleep 0.1
  done
  [ ! -d "$group" ] || echo "clean.sh: cgroup $group is still in use" >&2
done
rm -rf --one-file-system "/var/tmp/$prefix"*
