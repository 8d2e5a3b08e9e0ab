#!/usr/bin/env bash
# Builds kwok at the version that the module beside this file pins, unless it is there already,
# and prints the directory it is in, with kwok.yaml: how its nodes and pods behave.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

sum=$(cat build.sh go.* | sha256sum | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weir-cluster
module=sigs.k8s.io/kwok
version=$(go list -m -f '{{.Version}}' $module)
dir=$cache/kwok-$version-$(go env GOARCH)-$sum
mkdir -p "$dir"
exec 9>"$cache/lock"
flock 9 # another build may be at it

if [ ! -x "$dir/kwok" ]; then
  echo "building kwok into $dir (once)" >&2
  CGO_ENABLED=0 nice -n 10 go build -trimpath -buildvcs=false -p "${JOBS:-2}" -ldflags '-s -w' -o "$dir/.kwok" $module/cmd/kwok >&2
  stages=$(go list -m -f '{{.Dir}}' $module)/kustomize/stage
  for f in "$stages"/node/fast/node-*.yaml "$stages"/node/heartbeat-with-lease/node-*.yaml "$stages"/pod/fast/pod-*.yaml; do
    cat "$f"
    echo ---
  done >"$dir/kwok.yaml"
  mv -f "$dir/.kwok" "$dir/kwok"
fi
echo "$dir"
