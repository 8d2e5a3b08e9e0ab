#!/usr/bin/env bash
# Builds etcd and kube-apiserver from Go modules, at the versions go.mod pins, unless they
# are there already, and prints the directory they are in. About ten minutes of two cores,
# once: they stay in XDG_CACHE_HOME/weir-cluster (~/.cache/weir-cluster).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
etcd=$(go list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weir-cluster
dir=$cache/kubernetes-$version-etcd-$etcd-$(go env GOARCH)

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # another build may be at it
if [ ! -x "$dir/kube-apiserver" ] || [ ! -x "$dir/etcd" ]; then
  echo "building kube-apiserver $version and etcd $etcd into $dir (once, about ten minutes)" >&2
  new=$(mktemp -d "$cache/new-XXXXXX")
  trap 'rm -rf "$new"' EXIT
  v=k8s.io/component-base/version
  number=${version#v}
  minor=${number#*.}
  export CGO_ENABLED=0
  build() {
    nice -n 10 go build -p "${JOBS:-2}" -trimpath -buildvcs=false -o "$new/$1" \
      -ldflags "-s -w -X $v.gitVersion=$version -X $v.gitMajor=${number%%.*} -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean" "$2" >&2
  }
  build etcd go.etcd.io/etcd/server/v3
  build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
  mkdir -p "$dir"
  mv -f "$new"/* "$dir"/
fi
echo "$dir"
