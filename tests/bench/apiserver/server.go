// Package apiserver is the least of a Kubernetes API server that agents can watch: it lists
// and watches the kinds that policy is made from, in the encodings of a real one, and takes
// whatever is written to it without keeping it. Objects are put there by its owner. What a
// hundred thousand pods cost an agent can so be measured without the server that has them.
package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Server has objects. Safe for concurrent use.
type Server struct {
	mu      sync.Mutex
	changed *sync.Cond
	version uint64
	closed  bool
	kinds   map[string]*kind // by resource
	server  *http.Server
}

// kind is a resource: what there is, and all that ever happened.
type kind struct {
	list    func() runtime.Object
	bare    func() runtime.Object // of a bookmark
	objects map[string]event      // the newest of each, ADDED
	log     []event
}

type event struct {
	version uint64
	kind    string // ADDED, MODIFIED, DELETED
	object  runtime.Object
	raw     []byte // in protobuf, made once: who watches is measured, not who sends
}

// New makes an empty one.
func New() *Server {
	s := &Server{version: 1, kinds: map[string]*kind{
		"namespaces":      {list: of[corev1.NamespaceList], bare: of[corev1.Namespace]},
		"nodes":           {list: of[corev1.NodeList], bare: of[corev1.Node]},
		"pods":            {list: of[corev1.PodList], bare: of[corev1.Pod]},
		"services":        {list: of[corev1.ServiceList], bare: of[corev1.Service]},
		"endpointslices":  {list: of[discoveryv1.EndpointSliceList], bare: of[discoveryv1.EndpointSlice]},
		"networkpolicies": {list: of[networkingv1.NetworkPolicyList], bare: of[networkingv1.NetworkPolicy]},
	}}
	for _, k := range s.kinds {
		k.objects = map[string]event{}
	}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// of makes an object of a type whose pointer is one.
func of[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}

// Serve answers at l in the background, until Close.
func (s *Server) Serve(l net.Listener) {
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.server.Serve(l) }()
}

// Close ends all watches.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.changed.Broadcast()
	s.mu.Unlock()
	if s.server != nil {
		_ = s.server.Close()
	}
}

// Put makes or replaces an object. It is the server's from then on: do not change it.
func (s *Server) Put(resource string, objects ...runtime.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[resource]
	for _, o := range objects {
		m, err := s.next(k, o)
		if err != nil {
			return err
		}
		what, key := "ADDED", m.GetNamespace()+"/"+m.GetName()
		if _, ok := k.objects[key]; ok {
			what = "MODIFIED"
		}
		raw, err := protobuf(o)
		if err != nil {
			return err
		}
		k.objects[key] = event{0, "ADDED", o, raw}
		k.log = append(k.log, event{s.version, what, o, raw})
	}
	s.changed.Broadcast()
	return nil
}

// Delete removes an object, which says what it was.
func (s *Server) Delete(resource string, o runtime.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[resource]
	m, err := s.next(k, o)
	if err != nil {
		return err
	}
	delete(k.objects, m.GetNamespace()+"/"+m.GetName())
	raw, err := protobuf(o)
	if err != nil {
		return err
	}
	k.log = append(k.log, event{s.version, "DELETED", o, raw})
	s.changed.Broadcast()
	return nil
}

// next gives an object the next version and what an encoder wants to know.
func (s *Server) next(k *kind, o runtime.Object) (metav1.Object, error) {
	if k == nil {
		return nil, fmt.Errorf("no such resource for a %T", o)
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return nil, err
	}
	s.version++
	m.SetResourceVersion(strconv.FormatUint(s.version, 10))
	if m.GetUID() == "" {
		m.SetUID(uid(m.GetNamespace() + "/" + m.GetName()))
	}
	return m, nil
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	k := s.kinds[path[len(path)-1]]
	switch {
	case r.Method != http.MethodGet:
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
	case k == nil || slices.Contains(path, "leases"):
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: "NotFound", Code: 404})
	case r.URL.Query().Get("watch") != "" && r.URL.Query().Get("watch") != "false":
		s.watch(w, r, k)
	default:
		s.listAll(w, r, k)
	}
}

func (s *Server) listAll(w http.ResponseWriter, r *http.Request, k *kind) {
	list := k.list()
	s.mu.Lock()
	var objects []runtime.Object
	for _, e := range k.objects {
		objects = append(objects, e.object)
	}
	version := strconv.FormatUint(s.version, 10)
	s.mu.Unlock()
	encoding := encodingFor(r)
	if err := meta.SetList(list, objects); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	list.(metav1.ListInterface).SetResourceVersion(version)
	body, err := encoding.object(list)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", encoding.name)
	_, _ = w.Write(body)
}

// watch sends what is there, if that was asked for, and then what happens.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, k *kind) {
	encoding := encodingFor(r)
	w.Header().Set("Content-Type", encoding.name+encoding.stream)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // so that the wait below hears of the client's end
		select {
		case <-r.Context().Done():
			s.mu.Lock()
			s.changed.Broadcast()
			s.mu.Unlock()
		case <-stop:
		}
	}()
	s.mu.Lock()
	at := len(k.log)
	var first []event
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, e := range k.objects {
			first = append(first, e)
		}
		first = append(first, s.bookmark(k))
	} else if since, err := strconv.ParseUint(r.URL.Query().Get("resourceVersion"), 10, 64); err == nil {
		at, _ = slices.BinarySearchFunc(k.log, since+1, func(e event, v uint64) int { return int(int64(e.version) - int64(v)) })
	}
	s.mu.Unlock()
	if !s.send(w, encoding, first) {
		return
	}
	for {
		s.mu.Lock()
		for at == len(k.log) && !s.closed && r.Context().Err() == nil {
			s.changed.Wait()
		}
		events := k.log[at:len(k.log):len(k.log)]
		at = len(k.log)
		over := s.closed || r.Context().Err() != nil
		s.mu.Unlock()
		if over || !s.send(w, encoding, events) {
			return
		}
	}
}

func (s *Server) bookmark(k *kind) event {
	o := k.bare()
	m, _ := meta.Accessor(o)
	m.SetResourceVersion(strconv.FormatUint(s.version, 10))
	m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	raw, _ := protobuf(o) // a kind of the scheme's
	return event{0, "BOOKMARK", o, raw}
}

func (s *Server) send(w http.ResponseWriter, encoding encoding, events []event) bool {
	for _, e := range events {
		b, err := encoding.event(e)
		if err != nil {
			return false
		}
		if _, err := w.Write(b); err != nil {
			return false
		}
	}
	w.(http.Flusher).Flush()
	return true
}
