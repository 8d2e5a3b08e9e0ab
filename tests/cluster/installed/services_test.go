package installed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/tests/lab"
)

// some Services of the pods of an app: their ClusterIPs are translated at pods' sockets.
const someServices = `
apiVersion: v1
kind: Service
metadata: {namespace: services, name: any}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: server}, ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: services, name: same}
spec: {ipFamilyPolicy: RequireDualStack, sessionAffinity: ClientIP, selector: {app: server}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: services, name: here}
spec: {ipFamilyPolicy: RequireDualStack, internalTrafficPolicy: Local, selector: {name: b}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: services, name: leaving}
spec: {ipFamilyPolicy: RequireDualStack, selector: {name: leaves}, ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: services, name: brief}
spec: {ipFamilyPolicy: RequireDualStack, selector: {name: brief}, ports: [{name: udp, protocol: UDP, port: 81, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: services, name: headless}
spec: {clusterIP: None, ipFamilyPolicy: RequireDualStack, selector: {app: server}, ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 81, targetPort: 8081}]}
`

// services from pods, where more than a backend is to be chosen.
func (w *world) services() {
	w.namespace("services", "a@node1", "b@node2", "client@node1", "far@node2", "leaves@node1")
	for _, p := range []string{"client", "far", "leaves"} {
		w.kubectl("-n", "services", "label", "pod", p, "app=none", "--overwrite")
	}
	w.apply(someServices)
	client, far := w.caller("services", "client"), w.caller("services", "far")
	ips := map[string][]string{}
	for _, name := range []string{"any", "same", "here", "leaving", "brief"} {
		ips[name] = w.clusterIPs("services", name)
	}
	for i, family := range []int{4, 6} {
		w.until(fmt.Sprintf("both backends are chosen, IPv%d", family), func() error {
			if got := client.names(ips["any"][i], 12); got["a"] == 0 || got["b"] == 0 {
				return fmt.Errorf("chosen: %v", got)
			}
			return nil
		})
		for _, from := range []caller{client, far} {
			w.until("the Service with affinity is there", func() error {
				if got := from.names(ips["same"][i], 1); got["a"]+got["b"] != 1 {
					return fmt.Errorf("chosen: %v", got)
				}
				return nil
			})
			if got := from.names(ips["same"][i], 12); len(got) != 1 || got["a"]+got["b"] != 12 {
				w.Errorf("%s, IPv%d: with affinity these were chosen: %v", from.name, family, got)
			}
		}
		w.until("the Service of one node is there", func() error {
			if got := far.names(ips["here"][i], 1); got["b"] != 1 {
				return fmt.Errorf("chosen: %v", got)
			}
			return nil
		})
		if got := client.names(ips["here"][i], 3); got["refused"] != 3 {
			w.Errorf("IPv%d: internalTrafficPolicy Local without a backend here: %v", family, got)
		}
	}
	w.headless(client)
	w.unconnected(ips["any"])
	w.leaving(client, ips["leaving"])
	w.goes(client, ips["brief"])
}

// caller is a pod that asks for others: sockets of its own processes are translated, those of
// this test in its namespace are not.
type caller struct {
	*world
	name string
	node *lab.Host
	addr string
}

func (w *world) caller(namespace, name string) caller {
	w.Helper()
	return caller{w, name, &w.nodeOf(namespace, name).Host, w.addresses(namespace, name)[0]}
}

// names of the servers that answer, by how often they do; "none" of a question without an answer.
func (c caller) names(addr string, times int) map[string]int {
	c.Helper()
	return c.namesAt(addr, 80, times)
}

func (c caller) namesAt(addr string, port, times int) map[string]int {
	c.Helper()
	var said struct{ Responses, Errors []string }
	ask := url.Values{"request": {"hostname"}, "protocol": {"http"}, "host": {addr}, "port": {strconv.Itoa(port)}, "tries": {strconv.Itoa(times)}}
	c.until(c.name+" asks", func() error {
		return c.node.Do(func() error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(c.addr, "8080"), lab.Patience)
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := fmt.Fprintf(conn, "GET /dial?%s HTTP/1.0\r\nHost: x\r\n\r\n", ask.Encode()); err != nil {
				return err
			}
			r, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			said.Responses, said.Errors = nil, nil
			return json.NewDecoder(r.Body).Decode(&said)
		})
	})
	got := map[string]int{}
	for _, name := range said.Responses {
		got[name]++
	}
	for _, e := range said.Errors {
		switch {
		case strings.Contains(e, "connection refused"):
			got["refused"]++
		default:
			got["none: "+e]++
		}
	}
	return got
}

func (w *world) clusterIPs(namespace, name string) []string {
	w.Helper()
	s, err := w.Admin.CoreV1().Services(namespace).Get(w.ctx, name, metav1.GetOptions{})
	w.must(err)
	return s.Spec.ClusterIPs
}

// headless: there is nothing to translate, neither the pods' addresses nor the Service's port.
func (w *world) headless(client caller) {
	w.Helper()
	w.until("the Service has both pods in both families", func() error {
		out, err := w.Kubectl(w.ctx, "-n", "services", "get", "endpointslices", "-l", "kubernetes.io/service-name=headless", "-o", "jsonpath={.items[*].endpoints[*].addresses[*]}")
		if err == nil && len(strings.Fields(out)) != 4 {
			err = errors.New(out)
		}
		return err
	})
	for _, pod := range []string{"a", "b"} {
		for _, addr := range w.addresses("services", pod) {
			if err := want(client.namesAt(addr, 8080, 3), pod, 3); err != nil {
				w.Errorf("a headless Service's pod at %s: %v", addr, err)
			}
			if err := want(client.namesAt(addr, 80, 2), "refused", 2); err != nil {
				w.Errorf("a headless Service's port at %s, where no pod listens: %v", addr, err)
			}
			w.sendTo("udp", addr, 8081, pod)
		}
	}
}

// unconnected UDP sockets: a datagram's answer comes from where it was sent, whoever answers.
func (w *world) unconnected(addrs []string) {
	w.Helper()
	w.sendTo("udp4", addrs[0], 81, "a", "b")
	w.sendTo("udp", addrs[0], 81, "a", "b") // an IPv6 socket that sends IPv4
	w.sendTo("udp6", addrs[1], 81, "a", "b")
}

// sendToEnv has the test's program be a process in a pod: it sends from unconnected sockets,
// by a network to an address and port, and says who answers, and what.
const sendToEnv = "WEIRT_SEND_TO"

func TestMain(m *testing.M) {
	if network, to, ok := strings.Cut(os.Getenv(sendToEnv), " "); ok {
		if err := sendAll(network, netip.MustParseAddrPort(to)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const sockets = 24 // that all get the same of two backends happens never

func sendAll(network string, to netip.AddrPort) error {
	for range sockets {
		conn, err := net.ListenUDP(network, nil)
		if err != nil {
			return err
		}
		for range 2 {
			if err := sendOne(conn, to); err != nil {
				return err
			}
		}
		conn.Close()
	}
	return nil
}

func sendOne(conn *net.UDPConn, to netip.AddrPort) error {
	for try := 0; ; try++ {
		if _, err := conn.WriteToUDPAddrPort([]byte("hostname"), to); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		said := make([]byte, 64)
		n, from, err := conn.ReadFromUDPAddrPort(said)
		if err == nil {
			_, err = fmt.Println(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), strings.TrimSpace(string(said[:n])))
			return err
		} else if try == 3 { // a busy machine may be late
			return err
		}
	}
}

// sendTo wants each of these pods, and nobody else, to answer.
func (w *world) sendTo(network, addr string, port int, pods ...string) {
	w.Helper()
	program, err := os.Executable()
	w.must(err)
	to := net.JoinHostPort(addr, strconv.Itoa(port))
	cmd := w.inPod(w.ctx, "services", "client", program)
	cmd.Env = append(os.Environ(), sendToEnv+"="+network+" "+to)
	out, err := cmd.CombinedOutput()
	got := map[string]int{}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, line := range lines {
		got[line]++
	}
	for _, pod := range pods {
		if got[to+" "+pod] == 0 {
			err = errors.Join(err, fmt.Errorf("pod %s does not answer", pod))
		}
	}
	if err != nil || len(got) != len(pods) || len(lines) != 2*sockets {
		w.Errorf("%s to %s: %v: %v, want %v at that address", network, to, err, got, pods)
	}
}

// inPod is a process of this test that joins a node's cgroup and a pod's network: its sockets are
// the pod's.
func (w *world) inPod(ctx context.Context, namespace, pod, program string, args ...string) *exec.Cmd {
	w.Helper()
	node := w.nodeOf(namespace, pod)
	group := "/sys/fs/cgroup/unified/" + node.Netns
	if _, err := os.Stat(group); err != nil {
		group = "/sys/fs/cgroup/" + node.Netns
	}
	words := []string{"-c", `group=$1 net=$2; shift 2; echo $$ >"$group/cgroup.procs" && exec nsenter --net="$net" "$@"`, "sh", group, w.pod(namespace, pod).Path(), program}
	return exec.CommandContext(ctx, "sh", append(words, args...)...)
}

// leaving: the only backend terminates, and serves until it has; one that is ready takes over.
func (w *world) leaving(client caller, addrs []string) {
	w.Helper()
	slow := func(name, node string) string {
		text := strings.Replace(server("services", name, node), "terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 60", 1)
		text = strings.Replace(text, "app: server, name: "+name, "app: none, name: leaves", 1)
		return strings.Replace(text, "    image:", "    lifecycle: {preStop: {sleep: {seconds: 50}}}\n    image:", 1)
	}
	w.kubectl("-n", "services", "delete", "pod", "leaves", "--wait")
	w.apply(slow("old", "node2"))
	w.kubectl("-n", "services", "wait", "--for=condition=Ready", "pod", "old", "--timeout="+patience.String())
	w.until("the backend is known", func() error { return want(client.names(addrs[0], 1), "old", 1) })
	w.kubectl("-n", "services", "delete", "pod", "old", "--wait=false")
	w.until("it terminates", func() error {
		out, err := w.Kubectl(w.ctx, "-n", "services", "get", "endpointslices", "-l", "kubernetes.io/service-name=leaving", "-o", "jsonpath={.items[*].endpoints[*].conditions.terminating}")
		if err == nil && !strings.Contains(out, "true") {
			err = errors.New(out)
		}
		return err
	})
	time.Sleep(500 * time.Millisecond) // for the agent, which hears of it as this test does
	for _, addr := range addrs {
		if err := want(client.names(addr, 3), "old", 3); err != nil {
			w.Errorf("the only backend terminates and serves: %v", err)
		}
	}
	w.apply(slow("new", "node1"))
	w.kubectl("-n", "services", "wait", "--for=condition=Ready", "pod", "new", "--timeout="+patience.String())
	w.until("the one that is ready takes over", func() error { return want(client.names(addrs[0], 6), "new", 6) })
	w.kubectl("-n", "services", "delete", "pod", "old", "new", "--grace-period=0", "--force")
	w.until("without backends connections are refused", func() error { return want(client.names(addrs[1], 2), "refused", 2) })
}

func want(got map[string]int, name string, times int) error {
	if got[name] != times || len(got) != 1 {
		return fmt.Errorf("%v answered, not %s alone", got, name)
	}
	return nil
}

// goes: a backend is deleted. New connections go elsewhere, and the owner of a UDP socket that
// is connected to it hears of it.
func (w *world) goes(client caller, addrs []string) {
	w.Helper()
	for i, addr := range addrs {
		family := 4 + 2*i
		w.apply(server("services", "brief", []string{"node1", "node2"}[i])) // here, and on the other node
		w.kubectl("-n", "services", "wait", "--for=condition=Ready", "pod", "brief", "--timeout="+patience.String())
		talk := &talk{gone: filepath.Join(w.TempDir(), "gone")}
		w.until(fmt.Sprintf("a socket that is connected to the pod that goes, IPv%d", family), func() error {
			talk.hangUp()
			talk.begin(w, addr)
			time.Sleep(time.Second)
			if said := talk.said.String(); !strings.Contains(said, "brief") {
				return fmt.Errorf("the server says %q", said)
			}
			return nil
		})
		w.kubectl("-n", "services", "delete", "pod", "brief", "--wait")
		w.must(os.WriteFile(talk.gone, nil, 0o600))
		select {
		case <-talk.ended:
			if said := talk.said.String(); !strings.Contains(said, "No route to host") && !strings.Contains(said, "Permission denied") {
				w.Errorf("IPv%d: a connected socket's owner hears\n%s", family, said)
			}
		case <-time.After(20 * time.Second):
			w.Errorf("IPv%d: a connected socket's owner does not hear that its peer is gone:\n%s", family, tail(talk.said.String()))
		}
		talk.hangUp()
		if got := client.names(w.clusterIPs("services", "any")[i], 6); got["a"]+got["b"] != 6 {
			w.Errorf("IPv%d: a backend is gone, and new connections: %v", family, got)
		}
	}
}

func tail(text string) string { return text[max(0, len(text)-120):] }

// talk is a process with a connected UDP socket, which asks all the time.
type talk struct {
	gone  string // a file: it waits for that after the first answer
	said  safe
	ended chan error
	stop  context.CancelFunc
}

type safe struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *safe) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *safe) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (t *talk) begin(w *world, addr string) {
	ctx, stop := context.WithCancel(w.ctx)
	t.stop, t.ended = stop, make(chan error, 1)
	t.said.mu.Lock()
	t.said.text.Reset()
	t.said.mu.Unlock()
	script := `exec 3<>/dev/udp/` + addr + `/81; echo hostname >&3; timeout 1 dd bs=64 count=1 status=none <&3
while [ ! -e ` + t.gone + ` ]; do sleep 0.1; done
while echo hostname >&3; do timeout 0.5 dd bs=64 count=1 status=none <&3 || [ $? = 124 ] || exit 7; sleep 1; done`
	cmd := w.inPod(ctx, "services", "client", "bash", "-c", script)
	cmd.Stdout, cmd.Stderr = &t.said, &t.said
	ended := t.ended
	go func() { ended <- cmd.Run() }()
}

func (t *talk) hangUp() {
	if t.stop != nil {
		t.stop()
	}
}
