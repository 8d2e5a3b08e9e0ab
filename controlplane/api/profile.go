package api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"runtime/pprof"
	"strconv"
	"time"
)

const (
	profileCPU     = "cpu"
	profileHeap    = "heap"
	profileSeconds = 10
	profileMost    = 300 // seconds
)

// profile answers what the agent's memory is for, what its goroutines do, or, after a while,
// what its time goes to.
func profile(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var out bytes.Buffer
	var err error
	if kind := q.Get("kind"); kind == profileCPU {
		err = profileTime(r, q, &out)
	} else {
		err = lookup(kind, q.Get("text") == "1", &out)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(out.Bytes())
}

func profileTime(r *http.Request, q url.Values, out io.Writer) error {
	seconds := profileSeconds
	if text := q.Get("seconds"); text != "" {
		var err error
		if seconds, err = strconv.Atoi(text); err != nil || seconds < 1 || seconds > profileMost {
			return invalid("seconds %q is no number from 1 to %d", text, profileMost)
		}
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return &Error{Code: CodeTryLater, Message: fmt.Sprintf("profile: %v", err)}
	}
	defer pprof.StopCPUProfile()
	select {
	case <-r.Context().Done():
	case <-time.After(time.Duration(seconds) * time.Second):
	}
	return nil
}

func lookup(kind string, text bool, out io.Writer) error {
	p := pprof.Lookup(kind)
	if p == nil {
		return invalid("kind %q is none of cpu, heap, allocs, goroutine, block, mutex, threadcreate", kind)
	}
	if kind == profileHeap {
		runtime.GC() // what is in use now, not at some time before
	}
	debug := 0
	if text {
		debug = 1
	}
	return p.WriteTo(out, debug)
}
