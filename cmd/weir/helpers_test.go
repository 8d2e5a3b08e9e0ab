package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
)

// agent is one in the test: it answers each path with what the map says, an *api.Error
// as a refusal, a function as a handler, and keeps the requests.
type agent struct {
	dir      string
	mu       sync.Mutex
	requests []string
}

func init() { time.Local = time.UTC }

func startAgent(t *testing.T, answers map[string]any) *agent {
	t.Helper()
	a := &agent{dir: t.TempDir()}
	l, err := net.Listen("unix", filepath.Join(a.dir, api.SocketName))
	must(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.requests = append(a.requests, r.URL.String())
		a.mu.Unlock()
		switch answer := answers[r.URL.Path].(type) {
		case func(http.ResponseWriter, *http.Request):
			answer(w, r)
		case *api.Error:
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(answer)
		default:
			_ = json.NewEncoder(w).Encode(answer)
		}
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return a
}

// result is what a command line came to.
type result struct {
	status   int
	out, err string
}

// weir runs a command line as a script would: nothing is a terminal.
func weir(ctx context.Context, stateDir string, args ...string) result {
	var out, errs bytes.Buffer
	status := run(ctx, append(args, "--state-dir", stateDir), streams{out: &out, err: &errs})
	return result{status, out.String(), errs.String()}
}

func (a *agent) weir(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return weir(ctx, a.dir, args...)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// asked are the requests so far.
func (a *agent) asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}
