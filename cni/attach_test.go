package cni_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// The agent makes the endpoint while the programs are attached. An interface whose programs
// have to wait, here for somebody who holds their lock, waits with them: both ends are down.
func TestDownUntilAttached(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	unlock := n.lockLinks()
	c := n.newContainer("a")
	added := make(chan error, 1)
	go func() {
		_, err := c.add()
		added <- err
	}()
	c.wantDownWhileAsked()
	unlock()
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	n.wantUp(c)
	if len(n.pins()) == 0 {
		t.Error("up without its programs")
	}
}

// A plugin that is killed there leaves an interface that is down, and DEL takes it away.
func TestKilledWhileAttaching(t *testing.T) {
	n := newNode(t, "10.9.0.0/24")
	unlock := n.lockLinks()
	c := n.newContainer("a")
	cmd := exec.Command(filepath.Join(binDir, "weir-cni"))
	cmd.Stdin = strings.NewReader(n.stdin())
	cmd.Env = append(os.Environ(), append(c.env("ADD"), "CNI_PATH="+binDir)...)
	if err := n.netns.Do(func(ns.NetNS) error { return cmd.Start() }); err != nil {
		t.Fatal(err)
	}
	c.wantDownWhileAsked()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	unlock()
	c.wantDownWhileAsked()
	if err := c.del(); err != nil {
		t.Fatal(err)
	}
	n.mustLeaveNothing(c)
	c.mustAdd()
}

// lockLinks keeps everybody from attaching until unlock.
func (n *node) lockLinks() (unlock func()) {
	n.t.Helper()
	dir := filepath.Join(n.bpffsDir(), "links")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		n.t.Fatal(err)
	}
	return func() { _ = lock.Close() }
}

// wantDownWhileAsked waits until the agent was asked for the endpoint.
func (c *container) wantDownWhileAsked() {
	n := c.node
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); n.agent.known() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatal("the agent is not asked while the programs wait")
		}
	}
	time.Sleep(50 * time.Millisecond)
	for _, side := range []struct{ netns, name string }{{n.name, c.hostIfName()}, {c.netns, "eth0"}} {
		if up := n.ip(side.netns, "link show up dev "+side.name); up != "" {
			n.t.Errorf("up without its programs: %s", up)
		}
	}
}
