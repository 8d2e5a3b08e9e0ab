package bare

import (
	"crypto/x509/pkix"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/tests/cluster/control"
)

// StartProxy runs kube-proxy in a mode on the node, in its network namespace alone: its limits for the
// whole kernel (conntrack's, memory's) are left as they are. What it returns ends it, and
// takes its rules away; so does the end of the test.
func (n *Node) StartProxy(mode string) (stop func()) {
	c := n.c
	c.t.Helper()
	name := n.Name + "-proxy"
	config := filepath.Join(c.Dir, name+".kubeconfig")
	c.UserKubeconfig(config, pkix.Name{CommonName: "system:kube-proxy"})
	program := filepath.Join(c.opts.Bin, "kube-proxy")
	p, err := control.Spawn(filepath.Join(n.Dir, "log", "kube-proxy.log"), control.In(n.Netns, program,
		"--kubeconfig="+config, "--hostname-override="+n.Name, "--proxy-mode="+mode, "--cluster-cidr="+pods4+","+pods6,
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--oom-score-adj=0"))
	c.must(err)
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		if c.t.Failed() {
			c.t.Logf("kube-proxy of %s logged\n%s", n.Name, p.Tail())
		}
		p.Stop(unix.SIGKILL)
		cmd := control.In(n.Netns, program, "--cleanup", "--proxy-mode="+mode)
		if out, err := cmd.CombinedOutput(); err != nil {
			c.t.Errorf("kube-proxy --cleanup: %v\n%s", err, out)
		}
	}
	c.t.Cleanup(stop)
	return stop
}
