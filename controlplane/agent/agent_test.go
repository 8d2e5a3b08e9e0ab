package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/endpoint"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/controlplane/statedir"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/identity"
)

const podYAML = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop, labels: {app: %s}}
`

// added adds an endpoint for pod shop/name, whose interface has the index.
func (b *bench) added(ctx context.Context, index uint32, name, addr string) (api.Endpoint, error) {
	req := request(fmt.Sprintf("c%d", index), "shop/"+name, index)
	req.Addresses = []string{addr}
	b.network.add(index, req.HostIfName)
	return b.agent.AddEndpoint(ctx, req)
}

func (b *bench) apply(file, text string) {
	b.t.Helper()
	b.write(file, text)
	if _, err := b.agent.Status(b.t.Context(), b.patience); err != nil {
		b.t.Fatal(err)
	}
}

// eventually waits until done says so.
func (b *bench) eventually(what string, done func() bool) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func TestAddWaitsForThePod(t *testing.T) {
	b := newBench(t)
	b.addWait = 10 * time.Second
	b.start()
	type result struct {
		e   api.Endpoint
		err error
	}
	done := make(chan result, 1)
	go func() {
		e, err := b.added(t.Context(), 101, "web", "10.0.0.1")
		done <- result{e, err}
	}()
	b.write("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	if r := <-done; r.err != nil || !r.e.Ready || r.e.Number != 1 {
		t.Fatalf("%+v, %v", r.e, r.err)
	}
	if s := b.kernel.State(); s.Endpoints[1].Ifindex != 101 {
		t.Fatalf("answered before it was enforced:\n%s", s.Text())
	}
}

// lateSource learns of policies only when it is asked for them.
type lateSource struct {
	Source
	tell func()
	err  error
}

func (s *lateSource) SyncPolicies(ctx context.Context, namespace string) error {
	if s.err == nil && namespace == "shop" {
		s.tell()
		_, s.err = s.Sync(ctx)
	}
	return s.err
}

// A pod is ready with the policies that there were when it was added, however late the
// source brings them, or not at all.
func TestAddWaitsForThePolicies(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	late := &lateSource{Source: b.agent.Source, tell: func() {
		b.write("deny.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {podSelector: {}}\n")
	}}
	b.agent.Source = late
	if _, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	if s := b.kernel.State(); s.Rulesets[s.Endpoints[1].Ingress].Allow {
		t.Fatalf("the pod began open:\n%s", s.Text())
	}
	late.err = errors.New("policies are newer")
	b.apply("api.yaml", fmt.Sprintf(podYAML, "api", "api"))
	var e *api.Error
	if _, err := b.added(t.Context(), 102, "api", "10.0.0.2"); !errors.As(err, &e) || e.Code != api.CodeTryLater || !strings.Contains(e.Message, "pod shop/api: policies are newer") {
		t.Fatalf("got %v", err)
	}
	if len(b.agent.Endpoints()) != 1 {
		t.Fatal("something is left")
	}
}

// Others are told of a pod before its ADD returns; that they cannot be is no reason not to
// start it.
func TestAddTellsOthers(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	told := ""
	b.agent.Announce = func(_ context.Context, r *endpoint.Record) error {
		time.Sleep(50 * time.Millisecond)
		told = fmt.Sprint(r.Pod(), r.LastPod.Name, r.Addresses())
		return nil
	}
	if _, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil || told != "shop/webweb[10.0.0.1]" {
		t.Fatalf("told %q, %v", told, err)
	}
	b.apply("api.yaml", fmt.Sprintf(podYAML, "api", "api"))
	b.agent.Announce = func(ctx context.Context, _ *endpoint.Record) error {
		<-ctx.Done() // an API server that does not answer
		return ctx.Err()
	}
	began := time.Now()
	if e, err := b.added(t.Context(), 102, "api", "10.0.0.2"); err != nil || !e.Ready {
		t.Fatalf("%+v, %v", e, err)
	}
	if took := time.Since(began); took < announceWait || took > 4*announceWait {
		t.Errorf("waited %s", took)
	}
}

func TestCallerThatLeavesLeavesNothing(t *testing.T) {
	b := newBench(t)
	b.addWait = time.Minute
	b.start()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.added(ctx, 101, "web", "10.0.0.1"); err == nil {
		t.Fatal("no error")
	}
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	// The pod is there now: the call gets as far as its record before it sees that nobody waits.
	_, err := b.added(ctx, 101, "web", "10.0.0.1")
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeTryLater {
		t.Fatalf("got %v", err)
	}
	if all := b.agent.Endpoints(); len(all) != 0 || len(b.kernel.State().Endpoints) != 0 {
		t.Fatalf("left: %+v\n%s", all, b.kernel.Text())
	}
	if e, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil || !e.Ready {
		t.Fatalf("afterwards: %+v, %v", e, err)
	}
}

func TestDeletedEndpointIsOutOfTheKernel(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	if _, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	epoch, graces := b.kernel.Epoch(), b.kernel.Graces()
	if err := b.agent.DeleteEndpoint(t.Context(), attachment("c101")); err != nil {
		t.Fatal(err)
	}
	if len(b.kernel.State().Endpoints) != 0 || b.kernel.Epoch() == epoch || b.kernel.Graces() == graces {
		t.Fatalf("epoch %d was %d, %d graces were %d\n%s", b.kernel.Epoch(), epoch, b.kernel.Graces(), graces, b.kernel.Text())
	}
	// Flows of the pod that had number 2 hold it.
	b.kernel.SetFlows(2, 1)
	if e, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil || e.Number != 3 {
		t.Fatalf("number %d, %v, want 3", e.Number, err)
	}
}

func TestWaitEndsWithTheTimeout(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	never := &silentSource{Source: b.agent.Source}
	b.agent.Source = never
	begun := time.Now()
	_, err := b.agent.Status(t.Context(), 50*time.Millisecond)
	var e *api.Error
	if !errors.As(err, &e) || !strings.Contains(e.Message, "not enforced within 50ms") || !strings.Contains(e.Message, "wanted") {
		t.Fatalf("got %v", err)
	}
	if took := time.Since(begun); took < 50*time.Millisecond || took > 5*time.Second {
		t.Fatalf("after %s", took)
	}
}

// silentSource promises a revision that never comes.
type silentSource struct{ Source }

func (s *silentSource) Sync(ctx context.Context) (uint64, error) { return 1 << 40, nil }

func TestFailedCommitIsRetriedByItself(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	b.kernel.SetCommitErr(errors.New("no space"))
	b.agent.change(func(*input) {})
	failing := func() bool {
		s, err := b.agent.Status(t.Context(), 0)
		return err == nil && len(s.Errors) == 1 && strings.Contains(s.Errors[0].Message, "no space")
	}
	b.eventually("status says so", failing)
	b.kernel.SetCommitErr(nil)
	b.eventually("the error goes", func() bool { return !failing() })
}

func TestChangesCloseTogetherAreOneCommit(t *testing.T) {
	b := newBench(t)
	b.start()
	before := b.kernel.Commits()
	var last uint64
	for range 200 {
		last = b.agent.change(func(*input) {})
	}
	b.eventually("the last change is applied", func() bool {
		b.agent.mu.Lock()
		defer b.agent.mu.Unlock()
		return b.agent.applied.change >= last
	})
	if n := b.kernel.Commits() - before; n > 5 {
		t.Fatalf("%d commits for 200 changes at once", n)
	}
}

func TestFirstCommitHasEverything(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	if _, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	epoch, commits := b.kernel.Epoch(), b.kernel.Commits()
	b.stop()
	b.start()
	if b.kernel.Epoch() != epoch || len(b.kernel.State().Endpoints) != 1 {
		t.Fatalf("epoch %d was %d\n%s", b.kernel.Epoch(), epoch, b.kernel.Text())
	}
	if n := b.kernel.Commits() - commits; n != 1 {
		t.Fatalf("%d commits until it was ready", n)
	}
}

func TestLostHooksAreAttachedAgain(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web"))
	e, err := b.added(t.Context(), 101, "web", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	_ = b.hooks.Detach(e.HostIfName)
	_ = b.hooks.AttachDevice(50, "gone0", loader.Plain)
	b.stop()
	b.start()
	want := loader.Attachment{Name: e.HostIfName, Hook: "from_pod", Ifindex: 101}
	b.eventually("hooks", func() bool {
		attached, _ := b.hooks.Attached()
		has := map[string]bool{}
		for _, at := range attached {
			has[at.Name+" "+at.Hook] = true
			if at.Name == want.Name && at.Hook == want.Hook && at.Ifindex != want.Ifindex {
				return false
			}
		}
		return has[want.Name+" from_pod"] && has[want.Name+" to_pod"] && has["eth0 to_network"] && has["eth0 from_network"] && !has["gone0 to_network"]
	})
	s, err := b.agent.Status(t.Context(), 0)
	if err != nil || !strings.Contains(strings.Join(s.Hooks, ", "), "to_network eth0") {
		t.Fatalf("%v, %v", s.Hooks, err)
	}
}

func TestMapsOfAnotherStateDirectoryAreRefused(t *testing.T) {
	kernel := &datapath.Fake{}
	for range 2 {
		_, _ = kernel.Commit(&datapath.State{Frontends: map[datapath.Frontend]struct{}{{Port: uint16(kernel.Epoch())}: {}}})
	}
	state, err := statedir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	_, err = New(Config{StateDir: state, Kernel: kernel, BPFFSDir: "/bpf/weir"})
	if err == nil || !strings.Contains(err.Error(), "--state-dir") || !strings.Contains(err.Error(), "/bpf/weir") {
		t.Fatalf("got %v", err)
	}
	if err := os.WriteFile(state.Path(idsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = New(Config{StateDir: state, Kernel: kernel, BPFFSDir: "/bpf/weir"}); err == nil || !strings.Contains(err.Error(), idsFile) {
		t.Fatalf("damaged id tables: %v", err)
	}
}

func TestNames(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("web.yaml", fmt.Sprintf(podYAML, "web", "web")+"status: {podIP: 10.0.9.9}\n")
	if _, err := b.added(t.Context(), 101, "web", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	p := b.agent.Endpoint(1)
	if !p.IsPod() || p.Name != "web" || strings.Join(p.Labels, " ") != "app=web namespace:kubernetes.io/metadata.name=shop" {
		t.Fatalf("%+v", p)
	}
	local := b.kernel.State().Peers[netip.MustParsePrefix("10.0.0.1/32")].Identity
	if p := b.agent.Peer(netip.MustParseAddr("10.0.0.1"), local); !p.IsPod() {
		t.Fatalf("%+v", p)
	}
	if p := b.agent.Peer(netip.MustParseAddr("10.0.0.1"), local+1); p != nil {
		t.Fatalf("a later owner's name: %+v", p)
	}
	if p := b.agent.Peer(netip.MustParseAddr("192.0.2.1"), identity.Host); p == nil || p.Name != "node" {
		t.Fatalf("node: %+v", p)
	}
	if r, ok := b.agent.Rule(datapath.RuleNotIsolated); !ok || r.Kind != "not-isolated" {
		t.Fatalf("rule: %+v", r)
	}
}

func TestExplain(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("shop.yaml", fmt.Sprintf(podYAML, "web", "web")+"---\n"+fmt.Sprintf(podYAML, "db", "db")+`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 6379}]}]
`)
	for _, c := range []struct{ from, to, port, want string }{
		{"shop/web", "shop/db", "6379/tcp", "FORWARDED 4 ingress shop/db[0]"},
		{"shop/web", "shop/db", "6380", "DROPPED 4 ingress by shop/db"},
		{"fd00::9", "shop/db", "icmp", "DROPPED 6 ingress by shop/db"},
		{"shop/web", "192.0.2.9", "53/udp", "FORWARDED 4"},
		{"shop/web", "shop/db", "80/carrier", `error: port "80/carrier": write 80/tcp`},
		{"shop/web", "shop/db", "70000/tcp", `error: port "70000/tcp": write 80/tcp`},
		{"shop/nobody", "shop/db", "80/tcp", "error: from: pod shop/nobody is not there"},
		{"shop/web", "1.2.3", "80/tcp", `error: to: "1.2.3" is neither`},
		{"1.2.3.4", "fd00::1", "80/tcp", "error: "},
	} {
		if got := explained(b.agent.Explain(c.from, c.to, c.port, 0)); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s -> %s %s: got %q, want %q", c.from, c.to, c.port, got, c.want)
		}
	}
}

// Where the ends share no family, the verdict is policy's, and a note says so.
func TestExplainWithoutACommonFamily(t *testing.T) {
	b := newBench(t)
	b.start()
	b.apply("shop.yaml", fmt.Sprintf(podYAML, "web", "web"))
	for from, want := range map[string]string{"shop/web": "shop/web has no IPv4 address: nothing can be sent", "192.0.2.9": ""} {
		e, err := b.agent.Explain(from, "192.0.2.10", "80/tcp", 0)
		if err != nil || !strings.HasPrefix(e.Note, want) || (want == "") != (e.Note == "") {
			t.Errorf("from %s: note %q, %v, want %q", from, e.Note, err, want)
		}
	}
}

func explained(e api.Explanation, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	text := fmt.Sprintf("%s %d", e.Verdict, e.Family)
	if e.Ingress != nil {
		text += " ingress"
		for _, r := range e.Ingress.Rules {
			text += fmt.Sprintf(" %s/%s[%d]", r.Namespace, r.Name, r.Index)
		}
		if len(e.Ingress.Rules) == 0 {
			for _, by := range e.Ingress.IsolatedBy {
				text += " by " + by.Namespace + "/" + by.Name
			}
		}
	}
	return text
}

func TestUnreadableSourceEndsRun(t *testing.T) {
	b := newBench(t)
	b.start()
	b.stop()
	state, err := statedir.Open(b.stateDir)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	a, err := New(Config{StateDir: state, Source: brokenSource{}, Kernel: b.kernel, Hooks: b.hooks, Network: b.network, Log: b.agent.Log})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || err.Error() != "the source is gone" {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.stateDir, idsFile)); err != nil {
		t.Fatal(err)
	}
}

type brokenSource struct{}

func (brokenSource) Run(context.Context, func(source.Update)) error {
	return errors.New("the source is gone")
}
func (brokenSource) Sync(context.Context) (uint64, error) { return 0, nil }

// What the kernel makes of flows can be summed from status: made = emitted + lost, by ring.
func TestStatusAccountsForFlowEvents(t *testing.T) {
	b := newBench(t)
	b.kernel.Count = datapath.Counters{FlowsNew: 10, FlowsUpdated: 20, FlowsEnded: 5, FlowsRevoked: 2, EventsEmitted: 33, EventsLost: 4, DenialsEmitted: 6, DenialsLost: 1}
	b.start()
	s, err := b.agent.Status(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	f, sum := s.Flows, uint64(0)
	for _, n := range f.Made {
		sum += n
	}
	if len(f.Made) != 4 || sum != 37 || sum != f.EmittedBy["flow_events"]+f.LostBy["flow_events"] || f.Emitted != f.EmittedBy["flow_events"]+f.EmittedBy["denial_events"] {
		t.Errorf("%+v", f)
	}
}
