package kube

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/controlplane/source"
)

// encode an object as an API server does.
func encode(o kruntime.Object) []byte {
	codecs := serializer.NewCodecFactory(scheme)
	info, _ := kruntime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), kruntime.ContentTypeProtobuf)
	kinds, _, err := scheme.ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	var b bytes.Buffer
	if err := codecs.EncoderForVersion(info.Serializer, kinds[0].GroupVersion()).Encode(o, &b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func frameOf(what watch.EventType, o kruntime.Object) []byte {
	e := metav1.WatchEvent{Type: string(what), Object: kruntime.RawExtension{Raw: encode(o)}}
	body, err := e.Marshal()
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func versioned(name string, version int) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, UID: "u", ResourceVersion: strconv.Itoa(version), Labels: map[string]string{"v": strconv.Itoa(version)}}}
}

// TestTap is what the reflector gets of a watch, by what the store says meanwhile.
func TestTap(t *testing.T) {
	expired := &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 410, Reason: "Expired"}
	status := frameOf(watch.Error, expired)
	bookmark := versioned("", 0)
	mark := func(version int) []byte {
		bookmark.ResourceVersion = strconv.Itoa(version)
		return frameOf(watch.Bookmark, bookmark)
	}
	added := func(name string, version int) []byte { return frameOf(watch.Added, versioned(name, version)) }
	caught := func(version int) []byte { return appendBookmark(nil, "v1", "Pod", uint64(version)) }
	broken := errors.New("connection reset")
	huge := binary.BigEndian.AppendUint32(nil, frameMost)
	for _, c := range []struct {
		name   string
		begins bool
		stream [][]byte
		ends   error
		want   [][]byte
		has    string // pods of the store afterwards
	}{
		{"what is next goes to the store", false, [][]byte{added("a", 11), added("b", 12), frameOf(watch.Deleted, versioned("a", 13))}, io.EOF, [][]byte{caught(13)}, "b12"},
		{"what the store has seen does not", false, [][]byte{added("a", 10)}, io.EOF, [][]byte{added("a", 10)}, ""},
		{"a bookmark is the reflector's, and what comes before it has it", false, [][]byte{added("a", 11), mark(12), added("b", 13)}, io.EOF, [][]byte{caught(11), mark(12), added("b", 13)}, "a11"},
		{"an error is, and all after it", false, [][]byte{added("a", 11), status, added("b", 12)}, io.EOF, [][]byte{caught(11), status, added("b", 12)}, "a11"},
		{"nothing is put in before all objects are", true, [][]byte{added("a", 9), mark(10), added("b", 11)}, io.EOF, [][]byte{added("a", 9), mark(10), added("b", 11)}, ""},
		{"a frame that breaks", false, [][]byte{added("a", 11), added("b", 12)[:30]}, io.EOF, [][]byte{caught(11), added("b", 12)[:30]}, "a11"},
		{"a length that breaks", false, [][]byte{added("a", 11), added("b", 12)[:3]}, io.EOF, [][]byte{caught(11), added("b", 12)[:3]}, "a11"},
		{"a connection that breaks", false, [][]byte{added("a", 11)}, broken, [][]byte{caught(11)}, "a11"},
		{"and in a frame", false, [][]byte{added("a", 11), added("b", 12)[:30]}, broken, [][]byte{caught(11), added("b", 12)[:30]}, "a11"},
		{"a frame of more than is read", false, [][]byte{added("a", 11), huge, added("b", 12)}, io.EOF, [][]byte{caught(11), huge, added("b", 12)}, "a11"},
		{"no event", false, [][]byte{added("a", 11), {0, 0, 0, 1, 7}, added("b", 12)}, io.EOF, [][]byte{caught(11), {0, 0, 0, 1, 7}, added("b", 12)}, "a11"},
		{"another kind", false, [][]byte{frameOf(watch.Added, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "11"}})}, io.EOF,
			[][]byte{frameOf(watch.Added, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "11"}})}, ""},
	} {
		for _, slowly := range []bool{false, true} {
			s := newStores()
			if err := s.pods.Replace(nil, "10"); err != nil {
				t.Fatal(err)
			}
			k := s.kinds()[slices.IndexFunc(s.kinds(), func(k kind) bool { return k.resource == "pods" })]
			from := io.MultiReader(bytes.NewReader(bytes.Join(c.stream, nil)), iotest.ErrReader(c.ends))
			if slowly {
				from = iotest.OneByteReader(from)
			}
			q := httptest.NewRequest(http.MethodGet, "/", nil).WithContext(tapping(t.Context(), k, c.begins))
			body := tappedBody(q, &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(from),
				Header: http.Header{"Content-Type": {kruntime.ContentTypeProtobuf + ";stream=watch"}}})
			got, err := io.ReadAll(body)
			if c.ends == io.EOF && err != nil || c.ends != io.EOF && !errors.Is(err, c.ends) {
				t.Errorf("%s: ends with %v", c.name, err)
			}
			if want := bytes.Join(c.want, nil); !bytes.Equal(got, want) {
				t.Errorf("%s: the reflector gets\n%q\nwant\n%q", c.name, got, want)
			}
			has := ""
			for key, is := range s.pods.objects {
				has += key.Name + is.object.Labels["v"]
			}
			if has != c.has {
				t.Errorf("%s: the store has %q, want %q", c.name, has, c.has)
			}
		}
	}
}

// A bookmark of ours is one to who reads a real server's.
func TestBookmark(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "4711"}}
	e, ok := parseEvent(appendBookmark(nil, "v1", "Pod", 4711)[frameHead:])
	got, err := decode[*corev1.Pod](e.object)
	if !ok || err != nil || e.what != watch.Bookmark || e.version != "v1" || e.kind != "Pod" || !pod.ObjectMeta.DeletionTimestamp.Equal(got.DeletionTimestamp) || got.ResourceVersion != "4711" {
		t.Errorf("%+v %v %+v %v", e, ok, got, err)
	}
	var read metav1.WatchEvent
	if err := read.Unmarshal(appendBookmark(nil, "v1", "Pod", 4711)[frameHead:]); err != nil {
		t.Fatal(err)
	}
	o, _, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(read.Object.Raw, nil, nil)
	if p, ok := o.(*corev1.Pod); err != nil || !ok || p.ResourceVersion != "4711" {
		t.Errorf("client-go reads %v %v", o, err)
	}
}

// history is an API server of pods whose streams break in every way.
type history struct {
	*testing.T
	mu      sync.Mutex
	moved   chan struct{}
	r       *rand.Rand
	lists   bool // it cannot begin a watch with all objects
	plain   bool // it speaks JSON
	version int
	log     []happened
	pods    map[string]*corev1.Pod

	broken, expired, asked int
	from                   []int // versions that watches began at
}

type happened struct {
	what    watch.EventType
	version int
	pod     *corev1.Pod
}

func (h *history) happen() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.version++
	name := fmt.Sprint("pod-", h.r.Intn(12))
	p := versioned(name, h.version)
	what := watch.Added
	if _, ok := h.pods[name]; ok {
		what = watch.Modified
		if h.r.Intn(3) == 0 {
			what = watch.Deleted
		}
	}
	h.pods[name] = p
	if what == watch.Deleted {
		delete(h.pods, name)
	}
	h.log = append(h.log, happened{what, h.version, p})
	close(h.moved)
	h.moved = make(chan struct{})
}

func (h *history) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	resource := q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:]
	query := q.URL.Query()
	watches := query.Get("watch") == "true"
	if resource != "pods" {
		w.Header().Set("Content-Type", "application/json")
		if watches {
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
			return
		}
		kinds := map[string]string{"namespaces": "v1 Namespace", "nodes": "v1 Node", "services": "v1 Service", "endpointslices": "discovery.k8s.io/v1 EndpointSlice", "networkpolicies": "networking.k8s.io/v1 NetworkPolicy"}
		group, kind, _ := strings.Cut(kinds[resource], " ")
		items := ""
		switch resource {
		case "namespaces":
			items = `{"metadata":{"name":"x","resourceVersion":"1"}}`
		case "nodes":
			items = `{"metadata":{"name":"a","resourceVersion":"1"}}`
		}
		fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"1"},"items":[%s]}`, kind, group, items)
		return
	}
	h.mu.Lock()
	h.asked++
	begins := query.Get("sendInitialEvents") == "true"
	at := h.version
	var first []happened
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range h.pods {
			if !yield(n) {
				return
			}
		}
	}) {
		v, _ := strconv.Atoi(h.pods[name].ResourceVersion)
		first = append(first, happened{watch.Added, v, h.pods[name]})
	}
	h.mu.Unlock()
	if !watches {
		list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(at)}}
		for _, e := range first {
			list.Items = append(list.Items, *e.pod)
		}
		w.Header().Set("Content-Type", kruntime.ContentTypeProtobuf)
		_, _ = w.Write(encode(list))
		return
	}
	if begins && h.lists {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
		return
	}
	h.mu.Lock()
	r := rand.New(rand.NewSource(h.r.Int63()))
	if !begins {
		at, _ = strconv.Atoi(query.Get("resourceVersion"))
		h.from = append(h.from, at)
		first = nil
	} else {
		end := versioned("", at)
		end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		first = append(first, happened{watch.Bookmark, at, end})
	}
	h.mu.Unlock()
	w.Header().Set("Content-Type", kruntime.ContentTypeProtobuf+";stream=watch")
	if h.plain {
		w.Header().Set("Content-Type", "application/json")
	}
	h.stream(w, q, r, first, at)
}

// stream events from version at on, with some luck until the client goes.
func (h *history) stream(w http.ResponseWriter, q *http.Request, r *rand.Rand, first []happened, at int) {
	breaks := 1 + len(first) + r.Intn(60)
	send := func(b []byte) {
		cut := r.Intn(len(b))
		_, _ = w.Write(b[:cut])
		if r.Intn(3) == 0 {
			w.(http.Flusher).Flush()
		}
		_, _ = w.Write(b[cut:])
		w.(http.Flusher).Flush()
	}
	for {
		h.mu.Lock()
		events, moved := first, h.moved
		for _, e := range h.log {
			if e.version > at {
				events = append(events, e)
			}
		}
		first = nil
		h.mu.Unlock()
		for _, e := range events {
			b := frameOf(e.what, e.pod)
			if h.plain {
				text, err := kruntime.DefaultUnstructuredConverter.ToUnstructured(e.pod)
				if err != nil {
					panic(err)
				}
				u := unstructured.Unstructured{Object: text}
				u.SetAPIVersion("v1")
				u.SetKind("Pod")
				raw, _ := u.MarshalJSON()
				b = fmt.Appendf(nil, `{"type":%q,"object":%s}`+"\n", e.what, bytes.TrimSpace(raw))
			}
			if breaks--; breaks > 0 {
				send(b)
				at = max(at, e.version)
				if !h.plain && r.Intn(20) == 0 && e.what != watch.Bookmark && len(first) == 0 && at == e.version {
					send(frameOf(watch.Bookmark, versioned("", at)))
				}
				continue
			}
			h.mu.Lock()
			h.broken++
			h.mu.Unlock()
			switch r.Intn(4) {
			case 0: // ends
			case 1:
				_, _ = w.Write(b[:r.Intn(len(b))])
			case 2:
				_, _ = w.Write(b[:r.Intn(len(b))])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			case 3:
				if !h.plain {
					h.mu.Lock()
					h.expired++
					h.mu.Unlock()
					send(frameOf(watch.Error, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 410, Reason: "Expired"}))
				}
			}
			return
		}
		select {
		case <-q.Context().Done():
			return
		case <-moved:
		}
	}
}

// TestTappedWatch has streams that break in all ways, of servers of all kinds, and demands that no pod
// is ever seen to go back, and that all end as the server has it; and that most events went to the store at once.
func TestTappedWatch(t *testing.T) {
	direct, all, broken, expired := 0, 0, 0, 0
	for seed := range int64(8) {
		h := &history{T: t, moved: make(chan struct{}), r: rand.New(rand.NewSource(seed)), lists: seed%2 == 1, plain: seed == 7, version: 100, pods: map[string]*corev1.Pod{}}
		server := httptest.NewServer(h)
		file := filepath.Join(t.TempDir(), "kubeconfig")
		text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
			"clusters":[{"name":"c","cluster":{"server":%q}}],"users":[{"name":"u","user":{}}]}`, server.URL)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		client, err := Connect(file, "test")
		if err != nil {
			t.Fatal(err)
		}
		s := New(Config{Client: client, NodeName: "a", Log: slog.New(slog.DiscardHandler)})
		newest := map[string]int{}
		count := s.stores.pods.changed
		s.stores.pods.changed = func(was, is *policy.Pod) {
			count(was, is)
			all++
			if strings.Contains(callers(), "(*tap).take") {
				direct++
			}
			if is == nil {
				return
			}
			v, _ := strconv.Atoi(is.Labels["v"])
			if v <= newest[is.Name] {
				t.Errorf("seed %d: %s went back from %d to %d", seed, is.Name, newest[is.Name], v)
			}
			newest[is.Name] = v
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		shown := &policy.Cluster{}
		go func() {
			defer close(done)
			_ = s.Run(ctx, func(u source.Update) { shown.Apply(u.Changes) })
		}()
		for range 500 {
			h.happen()
			if h.r.Intn(4) == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		same := func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			s.stores.Lock()
			defer s.stores.Unlock()
			if len(h.pods) != len(s.stores.pods.objects) {
				return false
			}
			for name, p := range h.pods {
				is, ok := s.stores.pods.objects[types.NamespacedName{Namespace: "x", Name: name}]
				if !ok || is.object.Labels["v"] != p.ResourceVersion {
					return false
				}
			}
			return true
		}
		for end := time.Now().Add(30 * time.Second); !same(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("seed %d: the store has %v, the server %v", seed, s.stores.pods.objects, h.pods)
			}
		}
		h.mu.Lock()
		broken, expired = broken+h.broken, expired+h.expired
		h.mu.Unlock()
		cancel()
		<-done
		server.CloseClientConnections()
		server.Close()
	}
	if broken < 20 || expired == 0 || direct < all/3 {
		t.Errorf("%d streams broke, %d expired; %d of %d changes were direct: too few to tell anything", broken, expired, direct, all)
	}
	t.Logf("%d of %d changes direct, %d streams broke, %d expired", direct, all, broken, expired)
}

func callers() string {
	pcs := make([]uintptr, 12)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	out := ""
	for {
		f, more := frames.Next()
		out += f.Function + "\n"
		if !more {
			return out
		}
	}
}
