#!/usr/bin/env bash
# node.sh CGROUP... makes a node of the caller's network namespace: joins its cgroups, takes
# mount, pid and other namespaces of its own, and runs a container runtime and kubelet there. Its
# end, or that of either, is the end of all that runs on the node. By environment:
#
#   NODE, ADDRESSES (1.2.3.4,fd00::1), BIN, DIR (the node's files), PKI, BPFFS (mounted, unless empty), IMAGES (archives)
set -euo pipefail

if [ "${1:-}" != inside ]; then
  for group; do echo $$ >"$group/cgroup.procs"; done
  exec unshare --mount --uts --ipc --cgroup --pid --fork --kill-child=KILL --mount-proc bash "$0" inside
fi

hostname "$NODE"
# Nothing of this is seen outside: unshare made the mounts private.
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
if [ "$(cut -d: -f1 /proc/self/cgroup)" = 0 ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else # a machine with cgroup v1, or both
  while IFS=: read -r _ controllers _; do
    case $controllers in
      '') at=unified type=cgroup2 options=rw ;;
      name=*) at=${controllers#name=} type=cgroup options=none,$controllers ;;
      *) at=$controllers type=cgroup options=$controllers ;;
    esac
    mkdir -p "/sys/fs/cgroup/$at"
    mount -t "$type" -o "$options" cgroup "/sys/fs/cgroup/$at"
    for one in ${at//,/ }; do [ "$one" = "$at" ] || ln -s "$at" "/sys/fs/cgroup/$one"; done
  done </proc/self/cgroup
fi
if [ -n "$BPFFS" ]; then mount -t bpf bpf /sys/fs/bpf; fi
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netns "$DIR"/{lib,log,opt,etc,etc-work}
mount --bind "$DIR/lib" /var/lib
mount --bind "$DIR/log" /var/log
mount --bind "$DIR/opt" /opt
mount -t overlay -o "lowerdir=/etc,upperdir=$DIR/etc,workdir=$DIR/etc-work" etc /etc
mkdir -p /opt/cni/bin /etc/cni/net.d /var/lib/kubelet
# kubelet sets these for the whole kernel. What it sees has the values it wants.
show() { echo "$2" >"/run/${1##*/}" && mount --bind "/run/${1##*/}" "$1"; }
show /proc/sys/vm/overcommit_memory 1
show /proc/sys/kernel/panic 10
show /proc/sys/kernel/panic_on_oops 1
show /proc/sys/vm/panic_on_oom 0
show /proc/sys/kernel/keys/root_maxkeys 1000000
show /proc/sys/kernel/keys/root_maxbytes 25000000
mount --make-rshared /
: >/run/resolv.conf # not the machine's: pods would ask its resolver

cat >/run/containerd.toml <<T
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    use_internal_loopback = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
T
cat >/run/kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: ${ADDRESSES%%,*}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/$NODE.crt
tlsPrivateKeyFile: $PKI/$NODE.key
failCgroupV1: false
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
volumePluginDir: /var/lib/kubelet/plugins-exec
resolvConf: /run/resolv.conf
failSwapOn: false
serializeImagePulls: false
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
Y

PATH=$BIN:$PATH
containerd --config /run/containerd.toml >/var/log/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do kill -0 $!; sleep 0.1; done
for image in $IMAGES; do ctr -n k8s.io images import "$image"; done
kubelet --v=1 --config=/run/kubelet.yaml --kubeconfig="$PKI/$NODE.kubeconfig" \
  --hostname-override="$NODE" --node-ip="$ADDRESSES" --root-dir=/var/lib/kubelet >/var/log/kubelet.log 2>&1 &
wait -n # and reap what is left to this process meanwhile
echo "$NODE: containerd or kubelet ended" >&2
exit 1
