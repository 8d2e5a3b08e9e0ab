package api

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeAgent answers what it is told to; a blocked AddEndpoint reports its end.
type fakeAgent struct {
	add   func(context.Context, AddRequest) (Endpoint, error)
	wait  time.Duration
	gone  []Attachment
	asked []string
}

func (f *fakeAgent) Ping() Ping { return Ping{Version: "v1", NodeName: "node"} }
func (f *fakeAgent) Status(_ context.Context, wait time.Duration) (Status, error) {
	f.wait = wait
	if wait > time.Hour {
		return Status{}, &Error{Message: "a.yaml: broken"}
	}
	return Status{Node: "node", Epoch: 7}, nil
}
func (f *fakeAgent) Identities() []Identity { return []Identity{{Number: 1}} }
func (f *fakeAgent) Policies() []Policy     { return []Policy{{Name: "p"}} }
func (f *fakeAgent) Explain(from, to, port string, _ int) (Explanation, error) {
	f.asked = []string{from, to, port}
	return Explanation{Verdict: "DROPPED"}, nil
}
func (f *fakeAgent) Endpoints() []Endpoint { return []Endpoint{} }
func (f *fakeAgent) AddEndpoint(ctx context.Context, r AddRequest) (Endpoint, error) {
	return f.add(ctx, r)
}
func (f *fakeAgent) DeleteEndpoint(_ context.Context, a Attachment) error {
	f.gone = append(f.gone, a)
	return nil
}
func (f *fakeAgent) GC(_ context.Context, r GCRequest) error {
	return errors.New("no such luck")
}

// serveAgent serves f on a real socket and returns the state directory and what ends it.
func serveAgent(t *testing.T, f *fakeAgent) (dir string, stop func()) {
	t.Helper()
	dir = t.TempDir()
	// A socket that a killed agent left.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	flows := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("{\"flow\":1}\n")) })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, NewHandler(f, f, flows), slog.New(slog.DiscardHandler)) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return dir, stop
}

func TestServerAnswers(t *testing.T) {
	f := &fakeAgent{add: func(_ context.Context, r AddRequest) (Endpoint, error) {
		return Endpoint{}, &Error{Code: CodeTryLater, Message: "pod " + r.PodName + " is not there"}
	}}
	dir, _ := serveAgent(t, f)
	st, err := os.Stat(filepath.Join(dir, SocketName))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v, want mode 0600", st.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".s-*")); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
	c, ctx := Dial(dir), t.Context()
	if p, err := c.Ping(ctx); err != nil || p.NodeName != "node" {
		t.Errorf("ping: %+v, %v", p, err)
	}
	if s, err := c.Status(ctx, 3*time.Second); err != nil || s.Epoch != 7 || f.wait != 3*time.Second {
		t.Errorf("status: %+v, %v, waited %v", s, err, f.wait)
	}
	if _, err := c.Status(ctx, 2*time.Hour); err == nil || err.Error() != "a.yaml: broken" {
		t.Errorf("status that cannot be: %v", err)
	}
	if i, err := c.Identities(ctx); err != nil || len(i) != 1 {
		t.Errorf("identities: %v, %v", i, err)
	}
	if e, err := c.Endpoints(ctx); err != nil || e == nil {
		t.Errorf("endpoints: %v, %v", e, err)
	}
	if e, err := c.Explain(ctx, "a/b", "1.2.3.4", "80/tcp", 0); err != nil || e.Verdict != "DROPPED" || strings.Join(f.asked, " ") != "a/b 1.2.3.4 80/tcp" {
		t.Errorf("explain: %+v, %v, %v", e, err, f.asked)
	}
	var e *Error
	if _, err := c.Explain(ctx, "a/b", "c/d", "80/tcp", 5); !errors.As(err, &e) || e.Code != CodeInvalid || !strings.Contains(e.Message, "family") {
		t.Errorf("bad family: %v", err)
	}
	if _, err := c.AddEndpoint(ctx, AddRequest{PodName: "web"}); !errors.As(err, &e) || e.Code != CodeTryLater || e.Message != "pod web is not there" {
		t.Errorf("add: %v", err)
	}
	if err := c.DeleteEndpoint(ctx, Attachment{ContainerID: "c", IfName: "eth0"}); err != nil || len(f.gone) != 1 || f.gone[0].ContainerID != "c" {
		t.Errorf("delete: %v, %v", err, f.gone)
	}
	if err := c.DeleteEndpoint(ctx, Attachment{}); !errors.As(err, &e) || e.Code != CodeInvalid {
		t.Errorf("delete of nothing: %v", err)
	}
	if err := c.GC(ctx, GCRequest{}); !errors.As(err, &e) || e.Code != CodeInternal {
		t.Errorf("gc: %v", err)
	}
	n := 0
	if err := c.Flows(ctx, nil, func([]byte) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("flows: %d, %v", n, err)
	}
}

func TestProfile(t *testing.T) {
	dir, _ := serveAgent(t, &fakeAgent{})
	c := Dial(dir)
	if text, err := c.Profile(t.Context(), url.Values{"kind": {"heap"}, "text": {"1"}}); err != nil || !bytes.Contains(text, []byte("# HeapInuse = ")) {
		t.Errorf("heap: %v, %.200s", err, text)
	}
	zipped := []byte{0x1f, 0x8b}
	for _, q := range []url.Values{{"kind": {"heap"}}, {"kind": {"goroutine"}}, {"kind": {"cpu"}, "seconds": {"1"}}} {
		if b, err := c.Profile(t.Context(), q); err != nil || !bytes.HasPrefix(b, zipped) {
			t.Errorf("%v: %v, %d bytes", q, err, len(b))
		}
	}
	for _, q := range []url.Values{{}, {"kind": {"none"}}, {"kind": {"cpu"}, "seconds": {"0"}}, {"kind": {"cpu"}, "seconds": {"301"}}} {
		var e *Error
		if _, err := c.Profile(t.Context(), q); !errors.As(err, &e) || e.Code != CodeInvalid {
			t.Errorf("%v: %v", q, err)
		}
	}
}

func TestCallerThatLeavesEndsTheCall(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	f := &fakeAgent{add: func(ctx context.Context, _ AddRequest) (Endpoint, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return Endpoint{}, ctx.Err()
	}}
	dir, _ := serveAgent(t, f)
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-began; leave() }()
	if _, err := Dial(dir).AddEndpoint(ctx, AddRequest{}); err == nil {
		t.Fatal("no error")
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the agent still works for a caller that left")
	}
}

func TestServerEndsWithItsCalls(t *testing.T) {
	began := make(chan struct{})
	f := &fakeAgent{add: func(ctx context.Context, _ AddRequest) (Endpoint, error) {
		close(began)
		<-ctx.Done()
		return Endpoint{}, &Error{Code: CodeTryLater, Message: "the agent ends"}
	}}
	dir, stop := serveAgent(t, f)
	go func() { <-began; stop() }()
	if _, err := Dial(dir).AddEndpoint(t.Context(), AddRequest{}); err == nil || !strings.Contains(err.Error(), "the agent ends") {
		t.Fatalf("got %v", err)
	}
}

func TestOthersAreRefused(t *testing.T) {
	h := NewHandler(&fakeAgent{}, &fakeAgent{}, http.NotFoundHandler())
	for name, ctx := range map[string]context.Context{
		"unknown peer":  t.Context(),
		"another user":  context.WithValue(t.Context(), peerKey{}, uint32(os.Geteuid()+4242)),
		"the same user": context.WithValue(t.Context(), peerKey{}, uint32(os.Geteuid())),
	} {
		w := &recorder{}
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, PathPing, nil)
		h.ServeHTTP(w, r)
		if want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[name == "the same user"]; w.code != want {
			t.Errorf("%s: %d, want %d", name, w.code, want)
		}
	}
}

type recorder struct {
	code int
	h    http.Header
}

func (r *recorder) Header() http.Header {
	if r.h == nil {
		r.h = http.Header{}
	}
	return r.h
}
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }
func (r *recorder) WriteHeader(code int)        { r.code = code }
