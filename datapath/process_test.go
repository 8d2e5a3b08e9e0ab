package datapath

import "testing"

func TestContainerID(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	const pod = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
	for cgroup, want := range map[string]string{
		"/kubepods.slice/kubepods-pod1234_5678.slice/cri-containerd-" + id + ".scope": id,
		"/kubepods/burstable/pod12345678-1234-1234-1234-123456789abc/" + id:           id,
		"crio-" + id + ".scope/system.slice/sshd.service":                             id, // systemd in a container
		"/" + pod + "/" + id:                id, // the innermost
		"/system.slice/ssh.service":         "",
		"/" + id + "0":                      "", // 65 digits are something else's
		"kubepods-pod" + id[:32] + ".slice": "",
	} {
		if got := (&Process{Cgroup: cgroup}).ContainerID(); got != want {
			t.Errorf("%s: %q, want %q", cgroup, got, want)
		}
	}
	if (*Process)(nil).ContainerID() != "" {
		t.Error("nobody has a container")
	}
}
