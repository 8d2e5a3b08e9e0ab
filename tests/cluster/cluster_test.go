// Package cluster tests what Weir makes of a real API server: objects as it validates,
// defaults and delivers them, watches that break, rights that are missing.
//
//	test ---admin---> kube-apiserver --- etcd     on loopback
//	source --proxy--/
package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/kube"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/tests/cluster/control"
)

// bin has the control plane's programs.
var bin = os.Getenv("WEIR_CLUSTER_BIN")

func TestMain(m *testing.M) {
	if bin == "" {
		build := exec.Command("./build.sh")
		build.Stderr = os.Stderr
		out, err := build.Output()
		if err != nil {
			fmt.Fprintln(os.Stderr, "build the control plane:", err)
			os.Exit(1)
		}
		bin = strings.TrimSpace(string(out))
	}
	os.Exit(m.Run())
}

// patience is for what happens soon on any machine.
const patience = time.Minute

// scene is a control plane and one source behind a proxy.
type scene struct {
	*testing.T
	*control.Server
	proxy  *control.Proxy
	source *kube.Source
	log    *lines
	stop   context.CancelFunc
	ended  chan error

	mu      sync.Mutex
	updates []source.Update
}

const nodeName = "node-a"

func newScene(t *testing.T) *scene {
	s := &scene{T: t, Server: control.Start(t, bin)}
	s.proxy = control.NewProxy(t, s.Addr())
	return s
}

// watch starts the source with a kubeconfig.
func (s *scene) watch(kubeconfig string) {
	s.Helper()
	client, err := kube.Connect(kubeconfig, "weir-test")
	s.must(err)
	s.log, s.ended = &lines{}, make(chan error, 1)
	s.source = kube.New(kube.Config{Client: client, NodeName: nodeName, Log: testLog(s.log)})
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.mu.Lock()
	s.updates = nil
	s.mu.Unlock()
	from, ended := s.source, s.ended
	go func() { ended <- from.Run(ctx, source.Whole(s.take)) }()
	s.Cleanup(func() {
		cancel()
		if s.Failed() {
			s.Logf("the source logged\n%s", s.log)
		}
	})
}

// begin makes the node and a namespace, and waits for the first update.
func (s *scene) begin() {
	s.Helper()
	s.makeNode(nodeName, "10.244.1.0/24")
	s.makeNamespace("shop")
	s.watch(s.Kubeconfig(s.proxy.Addr(), ""))
	s.eventually("a first update", func(u source.Update) bool { return u.Cluster.Namespaces["shop"] != nil })
}

func (s *scene) take(u source.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates = append(s.updates, u)
}

// last update; its revision is 0 if there is none.
func (s *scene) last() source.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.updates) == 0 {
		return source.Update{Cluster: &policy.Cluster{}}
	}
	return s.updates[len(s.updates)-1]
}

func (s *scene) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.updates)
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) until(what string, done func() bool) {
	s.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func (s *scene) eventually(what string, done func(source.Update) bool) {
	s.Helper()
	s.until(what, func() bool { return done(s.last()) })
}

// sync is a Sync that has to work; the last update holds its revision.
func (s *scene) sync() uint64 {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	revision, err := s.source.Sync(ctx)
	s.must(err)
	if last := s.last().Revision; last < revision || revision == 0 {
		s.Fatalf("sync says revision %d, the last update has %d", revision, last)
	}
	return revision
}

// checkRevisions: they grow from one update to the next.
func (s *scene) checkRevisions() {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 1; i < len(s.updates); i++ {
		if s.updates[i].Revision <= s.updates[i-1].Revision {
			s.Errorf("update %d has revision %d after %d", i, s.updates[i].Revision, s.updates[i-1].Revision)
		}
	}
}

var create = metav1.CreateOptions{}

func (s *scene) makeNode(name string, cidrs ...string) *corev1.Node {
	s.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if len(cidrs) > 0 {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = cidrs[0], cidrs
	}
	n, err := s.Admin.CoreV1().Nodes().Create(s.Context(), n, create)
	s.must(err)
	return n
}

func (s *scene) makeNamespace(name string) {
	s.Helper()
	_, err := s.Admin.CoreV1().Namespaces().Create(s.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": name}}}, create)
	s.must(err)
}

func pod(name, app string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{{Name: "c", Image: "i",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}}},
	}
}

func (s *scene) makePod(name, app string) *corev1.Pod {
	s.Helper()
	p, err := s.Admin.CoreV1().Pods("shop").Create(s.Context(), pod(name, app), create)
	s.must(err)
	return p
}

// deletePod at once: there is no kubelet.
func (s *scene) deletePod(name string) {
	s.Helper()
	now := int64(0)
	s.must(s.Admin.CoreV1().Pods("shop").Delete(s.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
}

func (s *scene) label(name, app string) {
	s.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{"app":%q}}}`, app)
	_, err := s.Admin.CoreV1().Pods("shop").Patch(s.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
	s.must(err)
}

func (s *scene) makePolicy(name string, spec networkingv1.NetworkPolicySpec) {
	s.Helper()
	_, err := s.Admin.NetworkingV1().NetworkPolicies("shop").Create(s.Context(),
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: spec}, create)
	s.must(err)
}

func shop(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "shop", Name: name}
}

// app label of a pod, "" for none.
func app(u source.Update, name string) string {
	if p := u.Cluster.Pods[shop(name)]; p != nil {
		return p.Labels["app"]
	}
	return ""
}

// lines is a log that is read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func testLog(w *lines) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
