package scale

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// feed tells a client what an API server with such objects would, in the API server's own
// words on the wire: watches that begin with all there is, and lists of versions. It keeps
// nothing else, so it is there in seconds with more objects than an API server and etcd have
// room for beside the agent on a small machine. Its pods get addresses, and go, at once.
type feed struct {
	listener net.Listener
	dir      string

	mu      sync.Mutex
	version uint64
	kinds   map[string]*kept // by the end of their path
	seen    int              // events of pods
	given   map[string]int   // addresses, by node
}

type kept struct {
	objects map[types.NamespacedName]runtime.Object
	clients map[chan []byte]bool
}

var example = map[string]runtime.Object{
	"pods": &pod{}, "nodes": &corev1.Node{}, "namespaces": &corev1.Namespace{}, "networkpolicies": &networkingv1.NetworkPolicy{},
	"services": &corev1.Service{}, "endpointslices": &discoveryv1.EndpointSlice{},
}

const initialEventsEnd = "k8s.io/initial-events-end" // annotation of a bookmark

func newFeed(t *testing.T) *feed {
	t.Helper()
	f := &feed{dir: t.TempDir(), version: 1, kinds: map[string]*kept{}, given: map[string]int{}}
	for name := range example {
		f.kinds[name] = &kept{objects: map[types.NamespacedName]runtime.Object{}, clients: map[chan []byte]bool{}}
	}
	var err error
	if f.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(f.listener) }()
	return f
}

func (f *feed) addr() string { return f.listener.Addr().String() }

func (f *feed) kubeconfig(addr string) string {
	path := filepath.Join(f.dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "c", "cluster": {"server": "http://%s"}}],
"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}], "current-context": "c"}`, addr)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err)
	}
	return path
}

// ServeHTTP answers /api/v1/[namespaces/NS/]RESOURCE and the like of other groups.
func (f *feed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	kind, namespace := f.kinds[parts[len(parts)-1]], ""
	if n := len(parts); n > 2 && parts[n-3] == "namespaces" {
		namespace = parts[n-2]
	}
	q := r.URL.Query()
	switch watching := q.Get("watch") == "true" || q.Get("watch") == "1"; {
	case kind == nil || r.Method != http.MethodGet:
		http.Error(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`, http.StatusNotFound)
	case watching && q.Get("sendInitialEvents") == "true":
		f.watch(w, r, parts[len(parts)-1], kind)
	case !watching && strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList"):
		f.list(w, kind, namespace)
	default: // its client is to begin anew
		http.Error(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}`, http.StatusGone)
	}
}

func (f *feed) list(w http.ResponseWriter, kind *kept, namespace string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(f.version)}}
	for key, o := range kind.objects {
		if namespace == "" || key.Namespace == namespace {
			list.Items = append(list.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
				Namespace: key.Namespace, Name: key.Name, ResourceVersion: o.(metav1.Object).GetResourceVersion()}})
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

func (f *feed) watch(w http.ResponseWriter, r *http.Request, name string, kind *kept) {
	changes := make(chan []byte, 1<<16)
	f.mu.Lock()
	all, version := maps.Clone(kind.objects), f.version
	kind.clients[changes] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(kind.clients, changes)
	}()
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	out := protobuf.LengthDelimitedFramer.NewFrameWriter(w)
	for _, o := range all {
		if _, err := out.Write(event(watch.Added, o)); err != nil {
			return
		}
	}
	end := example[name].DeepCopyObject()
	end.(metav1.Object).SetResourceVersion(fmt.Sprint(version))
	end.(metav1.Object).SetAnnotations(map[string]string{initialEventsEnd: "true"})
	_, _ = out.Write(event(watch.Bookmark, end))
	for {
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case frame := <-changes:
			if _, err := out.Write(frame); err != nil {
				return
			}
		}
	}
}

// event as it is on the wire.
func event(kind watch.EventType, o runtime.Object) []byte {
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	gvk, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	object, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, gvk[0].GroupVersion()), o)
	if err != nil {
		panic(err)
	}
	text, err := (&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: object}}).Marshal()
	if err != nil {
		panic(err)
	}
	return text
}

// change stores and tells; the lock is held.
func (f *feed) change(what watch.EventType, o runtime.Object) {
	name := map[bool]string{true: "pods"}[isPod(o)]
	switch o.(type) {
	case *corev1.Node:
		name = "nodes"
	case *corev1.Namespace:
		name = "namespaces"
	case *networkingv1.NetworkPolicy:
		name = "networkpolicies"
	}
	kind, meta := f.kinds[name], o.(metav1.Object)
	f.version++
	meta.SetResourceVersion(strconv.FormatUint(f.version, 10))
	key := types.NamespacedName{Namespace: meta.GetNamespace(), Name: meta.GetName()}
	if what == watch.Deleted {
		delete(kind.objects, key)
	} else {
		kind.objects[key] = o
	}
	if isPod(o) {
		f.seen++
	}
	if len(kind.clients) == 0 {
		return
	}
	frame := event(what, o)
	for c := range kind.clients {
		c <- frame
	}
}

func isPod(o runtime.Object) bool { _, ok := o.(*pod); return ok }

func (f *feed) create(o runtime.Object) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	o = o.DeepCopyObject()
	meta := o.(metav1.Object)
	meta.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", f.version)))
	f.change(watch.Added, o)
	p, ok := o.(*pod)
	if !ok || !strings.HasPrefix(p.Spec.NodeName, playedPrefix) {
		return nil
	}
	n := f.given[p.Spec.NodeName]
	f.given[p.Spec.NodeName]++
	i, err := strconv.Atoi(strings.TrimPrefix(p.Spec.NodeName, playedPrefix))
	if err == nil {
		f.change(watch.Modified, running(p, strings.TrimSuffix(cidr(i), "0/24")+fmt.Sprint(1+n%250)))
	}
	return err
}

// edit a pod that is there.
func (f *feed) edit(namespace, name string, change func(*pod) *pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.kinds["pods"].objects[types.NamespacedName{Namespace: namespace, Name: name}]
	if o == nil {
		return fmt.Errorf("no pod %s/%s", namespace, name)
	}
	f.change(watch.Modified, change(o.DeepCopyObject().(*pod)))
	return nil
}

func (f *feed) label(namespace, name, key, value string) error {
	return f.edit(namespace, name, func(p *pod) *pod {
		if p.Labels[key] = value; value == "" {
			delete(p.Labels, key)
		}
		return p
	})
}

func (f *feed) address(p *pod, addrs ...string) error {
	return f.edit(p.Namespace, p.Name, func(p *pod) *pod { return running(p, addrs...) })
}

func (f *feed) remove(o runtime.Object, now bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := o.(*pod)
	if !ok {
		f.change(watch.Deleted, o.DeepCopyObject())
		return nil
	}
	had := f.kinds["pods"].objects[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}]
	if had == nil {
		return fmt.Errorf("no pod %s/%s", p.Namespace, p.Name)
	}
	if !now {
		going := had.DeepCopyObject().(*pod)
		at := metav1.Now()
		going.DeletionTimestamp = &at
		f.change(watch.Modified, going)
		had = going
	}
	f.change(watch.Deleted, had.DeepCopyObject())
	return nil
}

func (f *feed) firstOf(node string) (*pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.kinds["pods"].objects {
		if p := o.(*pod); p.Spec.NodeName == node {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no pod on node %s", node)
}

func (f *feed) events() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

func (f *feed) count(prefix string) (all, addressed int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, o := range f.kinds["pods"].objects {
		if strings.HasPrefix(key.Name, prefix) {
			all++
			if o.(*pod).Status.PodIP != "" {
				addressed++
			}
		}
	}
	return all, addressed
}
