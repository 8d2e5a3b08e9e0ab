package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weirnet/weir/controlplane/kube"
)

// TestClientGo has client-go's own reflector follow pods, in both encodings.
func TestClientGo(t *testing.T) {
	for _, contentType := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		t.Run(contentType, func(t *testing.T) {
			s := New()
			if err := s.Put("pods", Pod("ns", "a", "node", map[string]string{"app": "a"}, "10.0.0.1")); err != nil {
				t.Fatal(err)
			}
			client, err := rest.RESTClientFor(&rest.Config{Host: "http://" + listen(t, s).String(), APIPath: "/api", ContentConfig: rest.ContentConfig{
				ContentType: contentType, AcceptContentTypes: contentType, GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: codecs.WithoutConversion()}})
			if err != nil {
				t.Fatal(err)
			}
			store := cache.NewStore(cache.MetaNamespaceKeyFunc)
			reflector := cache.NewReflector(cache.NewListWatchFromClient(client, "pods", metav1.NamespaceAll, fields.Everything()), &corev1.Pod{}, store, 0)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			go reflector.RunWithContext(ctx)
			want := func(what string, ok func() bool) {
				t.Helper()
				for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("%s; the store has %v", what, store.ListKeys())
					}
				}
			}
			want("pod a is not listed", func() bool { _, ok, _ := store.GetByKey("ns/a"); return ok })
			for i := range 50 {
				if err := s.Put("pods", Pod("ns", fmt.Sprint("p", i), "node", nil, "10.0.1.1")); err != nil {
					t.Fatal(err)
				}
			}
			want("pods that came are not there", func() bool { return len(store.List()) == 51 })
			if err := s.Put("pods", Pod("ns", "a", "node", map[string]string{"app": "z"}, "10.0.0.1")); err != nil {
				t.Fatal(err)
			}
			want("a's labels are those of before", func() bool {
				o, _, _ := store.GetByKey("ns/a")
				return o.(*corev1.Pod).Labels["app"] == "z"
			})
			if err := s.Delete("pods", Pod("ns", "a", "node", nil)); err != nil {
				t.Fatal(err)
			}
			want("a is still there", func() bool { _, ok, _ := store.GetByKey("ns/a"); return !ok })
		})
	}
}

// TestKubeconfig leads the agent's own client there.
func TestKubeconfig(t *testing.T) {
	s := New()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	at := listen(t, s)
	if err := Kubeconfig(file, at); err != nil {
		t.Fatal(err)
	}
	c, err := kube.Connect(file, "test")
	if err != nil {
		t.Fatal(err)
	}
	if want := "http://" + at.String(); c.Host != want {
		t.Errorf("host %s, want %s", c.Host, want)
	}
	answer, err := http.Get("http://" + at.String() + "/apis/nobody/v1/things")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("a kind that is not there: %s", answer.Status)
	}
}

func listen(t *testing.T, s *Server) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Serve(l)
	t.Cleanup(s.Close)
	return l.Addr()
}
