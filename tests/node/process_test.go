package node

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath/maps"
	"github.com/weirnet/weir/tests/lab"
)

const portServed = 9100

// processEnv is a node with two pods and a cgroup whose processes' sockets are theirs.
func processEnv(t *testing.T, flags ...string) (*env, string) {
	cgroup := newCgroup(t)
	e := newEnvWith(t, lab.Options{Agent: append([]string{"--cgroup-root", cgroup}, flags...)}, "pods.yaml", abc, "deny.yaml", policy("ns", "deny", "  podSelector: {matchLabels: {app: c}}\n  policyTypes: [Ingress]\n"))
	e.add("ns/a", "ns/b", "ns/c")
	return e, cgroup
}

// record is the newest record of a kind from a port of ns/a.
func (e *env) recordFrom(kind, protocol string, port int) *api.FlowExtension {
	e.t.Helper()
	var got *api.FlowExtension
	e.eventually(fmt.Sprintf("a record %q of %s port %d", kind, protocol, port), 20*time.Second, func() bool {
		for _, f := range e.flows("--last", "1000", "--kind", kind, "--protocol", protocol, "--port", fmt.Sprint(port)) {
			x := e.extension(f)
			got = &x
		}
		return got != nil
	})
	return got
}

// is compares a record's process with /proc's.
func (e *env) is(what string, got *api.FlowProcess, want witness) {
	e.t.Helper()
	if got == nil {
		e.t.Errorf("%s: no process, want %+v", what, want)
		return
	}
	if got.PID != want.PID || got.Name != want.Name || got.Executable != want.Exe {
		e.t.Errorf("%s: %+v, want %+v", what, got, want)
	}
	if got.Start == nil || got.Start.Sub(started(want.Ticks)).Abs() > 50*time.Millisecond {
		e.t.Errorf("%s: started %v, /proc says %v", what, got.Start, started(want.Ticks))
	}
}

// copied is another program: this one under another name.
func copied(t *testing.T, name string) string {
	t.Helper()
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestProcessOfEveryOpener: who opened a connection is in its records, as /proc had it when
// he did, whatever became of him.
func TestProcessOfEveryOpener(t *testing.T) {
	e, cgroup := processEnv(t)
	server := e.host("ns/b").Addr(4) + ":" + fmt.Sprint(portHTTP)
	denied := e.host("ns/c").Addr(4) + ":" + fmt.Sprint(portHTTP)
	another := copied(t, "another-program")
	for _, c := range []struct {
		what, protocol, kind string
		steps                []string
		opens                string // the step that names the opener
	}{
		{"a process that ends at once", "tcp", "new", []string{"socket s tcp", "connect s " + server}, "connect s " + server},
		{"a child with its parent's socket", "tcp", "new", []string{"socket s tcp", "child connect s " + server}, "connect s " + server},
		{"a child that sends on its parent's connection", "tcp", "new", []string{"socket s tcp", "connect s " + server, "child send s"}, "connect s " + server},
		{"another program with the socket of the one before", "tcp", "new", []string{"socket s tcp", "exec " + another, "connect s " + server}, "connect s " + server},
		{"a program before it became another", "tcp", "new", []string{"socket s tcp", "connect s " + server, "exec " + another, "send s"}, "connect s " + server},
		{"connected datagrams", "udp", "new", []string{"socket s udp", "connect s " + server, "send s"}, "connect s " + server},
		{"unconnected datagrams", "udp", "new", []string{"socket s udp", "send s " + server}, "send s " + server},
		{"a child's datagrams on its parent's socket", "udp", "new", []string{"socket s udp", "child send s " + server}, "send s " + server},
		{"denied datagrams", "udp", "denied", []string{"socket s udp", "send s " + denied}, "send s " + denied},
	} {
		o := e.opener("ns/a", cgroup, append(c.steps, "wait")...)
		w := o.until(c.opens)
		if last := c.steps[len(c.steps)-1]; w.Step != last && !strings.HasPrefix(last, "child ") {
			o.until(last)
		}
		e.is(c.what, e.recordFrom(c.kind, c.protocol, w.Port).Process, w)
		o.goOn()
	}
	// A thread's name is its own, and not the process's.
	o := e.opener("ns/a", cgroup, "socket s tcp", "thread", "connect s "+server, "wait")
	w := o.until("connect s " + server)
	e.is("a thread", e.recordFrom("new", "tcp", w.Port).Process, w)
	for _, f := range e.flows("--last", "1000", "--protocol", "tcp", "--port", fmt.Sprint(w.Port)) {
		if x := e.extension(f); x.Process != nil && x.Process.ContainerID != "" {
			t.Errorf("container %s of a process that is in none", x.Process.ContainerID)
		}
	}
}

// TestProcessOfAContainer: its id is the cgroup's.
func TestProcessOfAContainer(t *testing.T) {
	e, cgroup := processEnv(t)
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	scope := filepath.Join(cgroup, "cri-containerd-"+id+".scope")
	e.must("cgroup", os.Mkdir(scope, 0o755))
	t.Cleanup(func() { _ = os.Remove(scope) })
	server := e.host("ns/b").Addr(4) + ":" + fmt.Sprint(portHTTP)
	o := e.opener("ns/a", scope, "socket s tcp", "connect s "+server, "wait")
	w := o.until("connect s " + server)
	got := e.recordFrom("new", "tcp", w.Port).Process
	e.is("in a container", got, w)
	if got.ContainerID != id {
		t.Errorf("container %q, want %s", got.ContainerID, id)
	}
	o.goOn()
	o.out.Scan() // it has ended
	e.eventually("the cgroup is empty", 5*time.Second, func() bool { return os.Remove(scope) == nil })
}

// TestProcessThatListens: who made the socket listen is named, not who accepts.
func TestProcessThatListens(t *testing.T) {
	e, cgroup := processEnv(t)
	at := fmt.Sprintf("%s:%d", e.host("ns/b").Addr(4), portServed)
	tcp := e.opener("ns/b", cgroup, "socket s tcp", fmt.Sprintf("bind s 0.0.0.0:%d", portServed), "listen s", "wait", "child accept s", "wait")
	listens := tcp.until("listen s")
	tcp.until("wait")
	o := e.opener("ns/a", cgroup, "socket s tcp", "connect s "+at, "wait", "hear s", "close s", "wait")
	w := o.until("connect s " + at)
	tcp.goOn()
	if a := tcp.until("accept s"); a.PID == listens.PID {
		t.Fatalf("%+v accepts, and listens", a)
	}
	o.goOn()
	x := e.recordFrom("ended", "tcp", w.Port)
	e.is("connects", x.Process, w)
	e.is("listens", x.Listener, listens)

	udp := e.opener("ns/b", cgroup, "socket s udp", fmt.Sprintf("bind s 0.0.0.0:%d", portServed), "answer s", "wait")
	binds := udp.until(fmt.Sprintf("bind s 0.0.0.0:%d", portServed))
	o = e.opener("ns/a", cgroup, "socket s udp", "connect s "+at, "send s", "hear s", "wait")
	w = o.until("hear s")
	e.must("detach", e.DelPod(e.ctx, e.pods["ns/b"])) // ends its flows
	x = e.recordFrom("ended", "udp", w.Port)
	e.is("sends", x.Process, w)
	e.is("answers", x.Listener, binds)
}

// TestProcessOfSharedPorts: of several processes that listen at one port (SO_REUSEPORT) the one
// is named whose socket the kernel chose.
func TestProcessOfSharedPorts(t *testing.T) {
	e, cgroup := processEnv(t)
	b := e.host("ns/b")
	bind := fmt.Sprintf("bind s 0.0.0.0:%d", portServed)
	servers := map[string]witness{} // by PID, as they say it
	for range 3 {
		o := e.opener("ns/b", cgroup, "socket s tcp", bind, "listen s", "wait", "serve s")
		w := o.until("listen s")
		servers[fmt.Sprint(w.PID)] = w
		o.until("wait")
		o.goOn()
		o = e.opener("ns/b", cgroup, "socket s udp", bind, "wait", "serve s")
		w = o.until(bind)
		servers[fmt.Sprint(w.PID)] = w
		o.until("wait")
		o.goOn()
	}
	type flow struct {
		protocol string
		port     int
		server   string
	}
	var flows []flow
	chosen := map[string]bool{}
	for range 12 {
		for _, protocol := range []string{"tcp", "udp"} {
			var c net.Conn
			e.must("connect", e.host("ns/a").Do(func() (err error) {
				d := net.Dialer{Timeout: 5 * time.Second}
				d.SetMultipathTCP(false)
				c, err = d.Dial(protocol, net.JoinHostPort(b.Addr(4), fmt.Sprint(portServed)))
				return err
			}))
			f := flow{protocol: protocol}
			if protocol == "udp" {
				_, err := c.Write([]byte("x"))
				e.must("send", err)
				f.port = c.LocalAddr().(*net.UDPAddr).Port
			} else {
				f.port = c.LocalAddr().(*net.TCPAddr).Port
			}
			said := make([]byte, 64)
			e.must("deadline", c.SetDeadline(time.Now().Add(5*time.Second)))
			n, err := c.Read(said)
			e.must("hear", err)
			f.server = string(said[:n])
			chosen[protocol+f.server] = true
			flows = append(flows, f)
			c.Close()
		}
	}
	if len(chosen) < 4 {
		t.Fatalf("the kernel chose %v: no test of a choice", chosen)
	}
	check := func(protocol string) {
		t.Helper()
		for _, f := range flows {
			if f.protocol == protocol {
				e.is(protocol, e.recordFrom("ended", protocol, f.port).Listener, servers[f.server])
			}
		}
	}
	check("tcp")
	e.must("detach", e.DelPod(e.ctx, e.pods["ns/b"])) // ends UDP's
	check("udp")
}

// TestProcessSurvivesTheAgent: what the kernel noted is there for the next agent; sockets that
// are older than any are their oldest holder's, and said to be.
func TestProcessSurvivesTheAgent(t *testing.T) {
	e, cgroup := processEnv(t, "--process=false")
	server := e.host("ns/b").Addr(4) + ":" + fmt.Sprint(portHTTP)
	old := e.opener("ns/a", cgroup, "socket s udp", "connect s "+server, "wait", "send s", "wait")
	older := old.until("connect s " + server)
	silent := e.opener("ns/a", cgroup, "socket s tcp", "connect s "+server, "wait")
	if x := e.recordFrom("new", "tcp", silent.until("connect s "+server).Port); x.Process != nil {
		t.Errorf("process %+v, though none is to be noted", x.Process)
	}
	e.must("stop", e.StopAgent())
	e.Flags("--process=true")
	e.must("start", e.StartAgent(e.ctx))
	e.must("wait", e.Wait(e.ctx))
	o := e.opener("ns/a", cgroup, "socket s tcp", "connect s "+server, "wait", "close s", "wait")
	w := o.until("connect s " + server)
	e.is("a new connection", e.recordFrom("new", "tcp", w.Port).Process, w)
	old.goOn()
	if got := e.recordFrom("new", "udp", older.Port).Process; !got.Held {
		t.Errorf("%+v opened a socket before anybody looked", got)
	} else {
		e.is("an older socket", got, older)
	}
	e.must("kill", e.KillAgent())
	e.must("start", e.StartAgent(e.ctx))
	e.must("wait", e.Wait(e.ctx))
	o.goOn()
	e.is("a connection whose beginning another agent read", e.recordFrom("ended", "tcp", w.Port).Process, w)
	for _, warning := range e.status().Warnings {
		t.Errorf("status warns: %s", warning)
	}
}

// TestProcessOfConnections: where a connection's opener is noted it stays until the connection is
// closed, be its pod there or not, and one that finds the place taken is as well known.
func TestProcessOfConnections(t *testing.T) {
	e, cgroup := processEnv(t)
	places, err := ebpf.LoadPinnedMap(maps.Path(e.BPFFSDir(), bpf.SockMapTcpOpeners), nil)
	e.must("places", err)
	defer places.Close()
	taken := func() (n int) {
		for at := range places.MaxEntries() {
			var word uint64
			if e.must("place", places.Lookup(at, &word)); word != 0 {
				n++
			}
		}
		return n
	}
	to := func(host string) string { return e.host(host).Addr(4) + ":" + fmt.Sprint(portHTTP) }
	served := to("ns/b")

	o := e.opener("ns/a", cgroup, "socket s tcp", "connect s "+served, "wait", "send s", "wait")
	w := o.until("connect s " + served)
	if n := taken(); n != 1 {
		t.Errorf("%d places of 1 connection", n)
	}
	e.apply("late.yaml", policy("ns", "late", "  podSelector: {matchLabels: {app: b}}\n  policyTypes: [Ingress]\n"))
	o.goOn()
	e.is("denied in the middle", e.recordFrom("denied", "tcp", w.Port).Process, w)
	e.must("remove", e.Remove("late.yaml"))
	e.must("wait", e.Wait(e.ctx))
	o.goOn()
	e.eventually("its place is free", 20*time.Second, func() bool { return taken() == 0 })

	for at := range places.MaxEntries() {
		e.must("take", places.Put(at, uint64(1)<<63|1))
	}
	o = e.opener("ns/a", cgroup, "socket s tcp", "connect s "+served, "close s", "socket u tcp", "connect u "+to("ns/c"), "wait")
	w = o.until("connect s " + served)
	e.is("no place is free", e.recordFrom("ended", "tcp", w.Port).Process, w)
	e.eventually("a denial", 10*time.Second, func() bool {
		for _, f := range e.flows("--last", "1000", "--kind", "denied", "--protocol", "tcp", "--to-pod", "ns/c") {
			if p := e.extension(f).Process; p != nil && p.PID == w.PID {
				return true
			}
		}
		return false
	})
	if n := taken(); n != int(places.MaxEntries()) {
		t.Errorf("%d places left of %d that are others'", n, places.MaxEntries())
	}
	for at := range places.MaxEntries() {
		e.must("free", places.Put(at, uint64(0)))
	}

	o = e.opener("ns/a", cgroup, "socket s tcp", "connect s "+served, "send s", "wait")
	o.until("send s")
	time.Sleep(300 * time.Millisecond) // an answer nobody reads: closing waits for no peer then
	e.must("detach", e.DelPod(e.ctx, e.pods["ns/a"]))
	if n := taken(); n != 1 {
		t.Errorf("%d places of 1 connection whose pod is gone", n)
	}
	o.goOn()
	e.eventually("the place of a gone pod's connection is free", 10*time.Second, func() bool { return taken() == 0 })
}

// TestProcessIDsAreReused: PIDs come again, processes do not.
func TestProcessIDsAreReused(t *testing.T) {
	e, cgroup := processEnv(t)
	server := e.host("ns/b").Addr(4) + ":" + fmt.Sprint(portHTTP)
	connect := func(pid int) witness {
		o := e.openerAs(pid, "ns/a", cgroup, "socket s tcp", "connect s "+server)
		w := o.until("connect s " + server)
		if o.end != nil {
			o.end()
		}
		return w
	}
	first := connect(0)
	x := e.recordFrom("new", "tcp", first.Port)
	e.is("the first", x.Process, first)
	second := connect(int(first.PID))
	if second.PID != first.PID || second.Ticks == first.Ticks {
		t.Fatalf("%+v has not the PID of %+v", second, first)
	}
	y := e.recordFrom("new", "tcp", second.Port)
	e.is("the second", y.Process, second)
	if x.Process.Start.Equal(*y.Process.Start) {
		t.Error("both started at once")
	}
}
