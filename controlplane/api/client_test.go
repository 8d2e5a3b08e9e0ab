package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve answers on a state directory's socket and returns the directory.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return dir
}

func TestNoAgent(t *testing.T) {
	dir := t.TempDir()
	_, err := Dial(dir).Ping(t.Context())
	if !errors.Is(err, ErrNoAgent) || !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("got %v, want ErrNoAgent with its cause", err)
	}
	want := "no agent at " + filepath.Join(dir, SocketName)
	if !strings.HasPrefix(err.Error(), want) || strings.Count(err.Error(), dir) != 1 {
		t.Fatalf("got %q, want %q once and the cause", err, want)
	}
}

func TestRefusalKeepsCode(t *testing.T) {
	dir := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(Error{Code: CodeTryLater, Message: "pod a/b is not known"})
	})
	_, err := Dial(dir).AddEndpoint(t.Context(), AddRequest{})
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeTryLater || e.Message != "pod a/b is not known" {
		t.Fatalf("got %v", err)
	}
}

func TestForeignServer(t *testing.T) {
	dir := serve(t, http.NotFound)
	_, err := Dial(dir).Policies(t.Context())
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeInternal || !strings.Contains(e.Message, "404") {
		t.Fatalf("got %v", err)
	}
}

func TestRequests(t *testing.T) {
	var got []string
	dir := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.String())
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("{}"))
		}
	})
	c, ctx := Dial(dir), t.Context()
	_, err := c.Status(ctx, 3*time.Second)
	_, err2 := c.Explain(ctx, "a/b", "10.0.0.1", "80/tcp", 4)
	err3 := c.DeleteEndpoint(ctx, Attachment{ContainerID: "c1", IfName: "eth0"})
	if err := errors.Join(err, err2, err3, c.GC(ctx, GCRequest{})); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"GET /v1/status?wait=3s",
		"GET /v1/explain?family=4&from=a%2Fb&port=80%2Ftcp&to=10.0.0.1",
		"DELETE /v1/endpoints?container=c1&ifname=eth0",
		"POST /v1/gc",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got %q\nwant %q", got, want)
	}
}

func TestFlows(t *testing.T) {
	dir := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("{\"n\":1}\n\n{\"n\":2}\n"))
	})
	var lines []string
	err := Dial(dir).Flows(t.Context(), url.Values{"last": {"2"}}, func(line []byte) error {
		lines = append(lines, string(line))
		return nil
	})
	if err != nil || strings.Join(lines, " ") != `{"n":1} {"n":2}` {
		t.Fatalf("got %q, %v", lines, err)
	}
	stop := errors.New("stop")
	if err := Dial(dir).Flows(t.Context(), nil, func([]byte) error { return stop }); err != stop {
		t.Fatalf("got %v, want the callback's error", err)
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	dir := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("{}\n"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	err := Dial(dir).Flows(ctx, nil, func([]byte) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
