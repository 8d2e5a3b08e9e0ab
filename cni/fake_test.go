package cni_test

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weirnet/weir/controlplane/api"
)

// fakeAgent serves the part of the agent's interface that the plugin uses.
type fakeAgent struct {
	mu        sync.Mutex
	ping      api.Ping
	epoch     atomic.Uint64
	endpoints map[api.Attachment]api.Endpoint
	requests  []api.AddRequest
	refuse    *api.Error                          // answer of the next ADDs, which leave an endpoint half made
	onAdd     func(api.AddRequest)                // before an ADD is answered
	onDelete  func(api.Attachment)                // before an endpoint is removed
	edit      func(api.Attachment, *api.Endpoint) // of what is listed
	gcs       [][]api.Attachment
	server    *http.Server
}

func startAgent(t *testing.T, stateDir string, ping api.Ping) *fakeAgent {
	t.Helper()
	f := &fakeAgent{ping: ping, endpoints: map[api.Attachment]api.Endpoint{}}
	f.epoch.Store(1)
	l, err := net.Listen("unix", filepath.Join(stateDir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathPing, func(w http.ResponseWriter, _ *http.Request) { answer(w, f.ping) })
	mux.HandleFunc("GET "+api.PathStatus, func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Status{Epoch: f.epoch.Load()}) })
	mux.HandleFunc("GET "+api.PathEndpoints, f.list)
	mux.HandleFunc("POST "+api.PathEndpoints, f.add)
	mux.HandleFunc("DELETE "+api.PathEndpoints, f.delete)
	mux.HandleFunc("POST "+api.PathGC, f.gc)
	f.server = &http.Server{Handler: mux}
	go func() { _ = f.server.Serve(l) }()
	t.Cleanup(f.stop)
	return f
}

func (f *fakeAgent) stop() { _ = f.server.Close() }

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (f *fakeAgent) add(w http.ResponseWriter, r *http.Request) {
	var req api.AddRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, req)
	if f.onAdd != nil {
		f.onAdd(req)
	}
	e := api.Endpoint{
		Number: uint32(len(f.requests)), PodNamespace: req.PodNamespace, PodName: req.PodName, Addresses: req.Addresses,
		ContainerID: req.ContainerID, IfName: req.IfName, HostIfName: req.HostIfName, HostIfindex: req.HostIfindex,
		MAC: req.MAC, Ready: true,
	}
	f.endpoints[api.Attachment{ContainerID: req.ContainerID, IfName: req.IfName}] = e
	if f.refuse != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		answer(w, f.refuse)
		return
	}
	answer(w, e)
}

func (f *fakeAgent) delete(_ http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := api.Attachment{ContainerID: r.URL.Query().Get("container"), IfName: r.URL.Query().Get("ifname")}
	if f.onDelete != nil {
		f.onDelete(at)
	}
	delete(f.endpoints, at)
}

func (f *fakeAgent) list(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := []api.Endpoint{}
	for at, e := range f.endpoints {
		if f.edit != nil {
			f.edit(at, &e)
		}
		all = append(all, e)
	}
	answer(w, all)
}

func (f *fakeAgent) gc(_ http.ResponseWriter, r *http.Request) {
	var req api.GCRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gcs = append(f.gcs, req.Valid)
}

// known counts the endpoints the agent holds.
func (f *fakeAgent) known() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.endpoints)
}
