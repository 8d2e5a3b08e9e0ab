package scale

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/tests/cluster/control"
)

// cluster is where objects are.
type cluster interface {
	addr() string
	kubeconfig(addr string) string // of a client that reaches it there
	create(runtime.Object) error
	label(namespace, name, key, value string) error // a pod; "" takes the label off
	address(p *pod, addrs ...string) error          // a pod's, as its kubelet tells
	remove(o runtime.Object, now bool) error        // a pod not now: its kubelet does it
	firstOf(node string) (*pod, error)
	// events of pods that there were; how many of whose names begin so there are, and of those
	// with addresses.
	events() int
	count(prefix string) (all, addressed int)
}

// server is a kube-apiserver, with kwok.
type server struct {
	*control.Server
	ctx   context.Context
	admin *kubernetes.Clientset // speaks protobuf: less to do for the machine

	mu    sync.Mutex
	seen  int
	state map[string]bool // by name: it has an address
}

func newServer(ctx context.Context, t *testing.T) *server {
	t.Helper()
	bin, kwok := os.Getenv("WEIR_CLUSTER_BIN"), os.Getenv("WEIR_KWOK")
	if bin == "" || kwok == "" {
		t.Fatal("WEIR_CLUSTER_BIN and WEIR_KWOK are not set: run `make test-api` or `make bench-scale`")
	}
	s := &server{Server: control.Start(t, bin), ctx: ctx, state: map[string]bool{}}
	config := s.Config()
	config.WarningHandler = rest.NoWarnings{}
	config.ContentType = runtime.ContentTypeProtobuf
	var err error
	if s.admin, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if err := s.watch(); err != nil {
		t.Fatal(err)
	}
	p, err := control.Spawn(filepath.Join(t.TempDir(), "kwok.log"), control.In("", filepath.Join(kwok, "kwok"), "--config", filepath.Join(kwok, "kwok.yaml"),
		"--kubeconfig", s.Kubeconfig(s.Addr(), ""), "--manage-nodes-with-annotation-selector", played+"=fake",
		"--node-lease-duration-seconds", "40", "--node-ip", "", "--v", "WARN"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop(os.Kill)
		if t.Failed() {
			t.Logf("kwok logged\n%s", p.Tail())
		}
	})
	return s
}

func (s *server) addr() string                  { return s.Addr() }
func (s *server) kubeconfig(addr string) string { return s.Kubeconfig(addr, "") }

func (s *server) create(o runtime.Object) (err error) {
	switch o := o.(type) {
	case *pod:
		_, err = s.admin.CoreV1().Pods(o.Namespace).Create(s.ctx, o, metav1.CreateOptions{})
	case *corev1.Node:
		_, err = s.admin.CoreV1().Nodes().Create(s.ctx, o, metav1.CreateOptions{})
	case *corev1.Namespace:
		_, err = s.admin.CoreV1().Namespaces().Create(s.ctx, o, metav1.CreateOptions{})
	case *networkingv1.NetworkPolicy:
		_, err = s.admin.NetworkingV1().NetworkPolicies(o.Namespace).Create(s.ctx, o, metav1.CreateOptions{})
	default:
		err = fmt.Errorf("create %T: not known here", o)
	}
	return err
}

func (s *server) label(namespace, name, key, value string) error {
	text := "null"
	if value != "" {
		text = fmt.Sprintf("%q", value)
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, key, text)
	_, err := s.admin.CoreV1().Pods(namespace).Patch(s.ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

func (s *server) address(p *pod, addrs ...string) error {
	_, err := s.admin.CoreV1().Pods(p.Namespace).UpdateStatus(s.ctx, running(p, addrs...), metav1.UpdateOptions{})
	return err
}

func (s *server) remove(o runtime.Object, now bool) error {
	options := metav1.DeleteOptions{}
	if now {
		options.GracePeriodSeconds = new(int64)
	}
	switch o := o.(type) {
	case *pod:
		return s.admin.CoreV1().Pods(o.Namespace).Delete(s.ctx, o.Name, options)
	case *networkingv1.NetworkPolicy:
		return s.admin.NetworkingV1().NetworkPolicies(o.Namespace).Delete(s.ctx, o.Name, options)
	}
	return fmt.Errorf("remove %T: not known here", o)
}

func (s *server) firstOf(node string) (*pod, error) {
	list, err := s.admin.CoreV1().Pods("").List(s.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node, Limit: 1})
	if err != nil || len(list.Items) == 0 {
		return nil, fmt.Errorf("no pod on node %s: %w", node, err)
	}
	return &list.Items[0], nil
}

// watch sees what becomes of pods.
func (s *server) watch() error {
	list, err := s.admin.CoreV1().Pods("").List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	go func() {
		version := list.ResourceVersion
		for s.ctx.Err() == nil {
			changes, err := s.admin.CoreV1().Pods("").Watch(s.ctx, metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				time.Sleep(100 * time.Millisecond)
				continue
			}
			for e := range changes.ResultChan() {
				if p, ok := e.Object.(*pod); ok {
					version = p.ResourceVersion
					s.take(e.Type, p)
				}
			}
		}
	}()
	return nil
}

func (s *server) take(kind watch.EventType, p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen++
	if kind == watch.Deleted {
		delete(s.state, p.Name)
	} else {
		s.state[p.Name] = p.Status.PodIP != ""
	}
}

func (s *server) events() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *server) count(prefix string) (all, addressed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, has := range s.state {
		if strings.HasPrefix(name, prefix) {
			all++
			if has {
				addressed++
			}
		}
	}
	return all, addressed
}
