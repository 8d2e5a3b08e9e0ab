#!/usr/bin/env bash
# Builds Kubernetes, etcd, containerd and Kubernetes' own tests from Go modules, at the versions
# that the modules beside this file pin, unless they are there already, and prints the directory
# they are in: XDG_CACHE_HOME/weir-cluster/... (~/.cache/weir-cluster). Once about twelve minutes
# of two cores, or eight with `build.sh kube`, which is the control plane's programs and kubelet.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

[ $# -gt 0 ] || set -- kube pause agnhost containerd containerd-shim-runc-v2 ctr e2e.test
version=$(cd kubernetes && go list -m -f '{{.Version}}' k8s.io/kubernetes)
sum=$(cat build.sh kubernetes/go.* kubernetes/*/*.go containerd/go.* | sha256sum | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weir-cluster
dir=$cache/kubernetes-$version-$(go env GOARCH)-$sum
mkdir -p "$dir"
exec 9>"$cache/lock"
flock 9 # another build may be at it

v=k8s.io/component-base/version
number=${version#v}
minor=${number#*.}
stamp="-X $v.gitVersion=$version -X $v.gitMajor=${number%%.*} -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
export CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false'

# build PROGRAM MODULE GO-COMMAND... PACKAGE
build() {
  local program=$1 module=$2
  shift 2
  [ ! -x "$dir/$program" ] || return 0
  echo "building $program into $dir (once)" >&2
  (cd "$module" && nice -n 10 "$@" >&2)
  mv -f "$dir/.$program" "$dir/$program"
}

for program; do
  flags=(-p "${JOBS:-2}" -ldflags "-s -w $stamp" -o "$dir/.$program")
  case $program in
    kube)
      build kube kubernetes go build "${flags[@]}" ./kube
      for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
        ln -sf kube "$dir/$name"
      done ;;
    agnhost) build agnhost kubernetes go build "${flags[@]}" k8s.io/kubernetes/test/images/agnhost ;;
    pause) build pause kubernetes go build "${flags[@]}" ./pause ;;
    # vet would go over all that the suite imports, for minutes
    e2e.test) build e2e.test kubernetes go test -c -vet=off "${flags[@]}" ./e2e ;;
    containerd* | ctr) build "$program" containerd go build "${flags[@]}" "github.com/containerd/containerd/v2/cmd/$program" ;;
    *) echo "build.sh: no program $program" >&2; exit 1 ;;
  esac
done
echo "$dir"
