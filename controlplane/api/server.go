package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Node answers what the agent knows about its node. Errors that are no *Error are
// answered as CodeInternal.
type Node interface {
	Ping() Ping
	// Status with wait > 0 answers once all that the source holds is enforced, with an
	// error when that cannot be or wait is over.
	Status(ctx context.Context, wait time.Duration) (Status, error)
	Identities() []Identity
	Policies() []Policy
	Explain(from, to, port string, family int) (Explanation, error)
}

// Endpoints is the life of the pods' interfaces.
type Endpoints interface {
	Endpoints() []Endpoint
	// AddEndpoint returns when the endpoint's policy is enforced; if it fails, or ctx is
	// over, nothing is left of it. The same request again is harmless.
	AddEndpoint(ctx context.Context, r AddRequest) (Endpoint, error)
	// DeleteEndpoint returns when no packet is judged by the endpoint any more; one that
	// is not there is no error.
	DeleteEndpoint(ctx context.Context, a Attachment) error
	// GC deletes every endpoint that r does not list.
	GC(ctx context.Context, r GCRequest) error
}

const maxRequest = 8 << 20

// NewHandler serves the API; flows answers PathFlows.
func NewHandler(n Node, e Endpoints, flows http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathPing, answer(func(*http.Request) (any, error) { return n.Ping(), nil }))
	mux.HandleFunc("GET "+PathStatus, answer(func(r *http.Request) (any, error) { return status(n, r) }))
	mux.HandleFunc("GET "+PathIdentities, answer(func(*http.Request) (any, error) { return n.Identities(), nil }))
	mux.HandleFunc("GET "+PathPolicies, answer(func(*http.Request) (any, error) { return n.Policies(), nil }))
	mux.HandleFunc("GET "+PathExplain, answer(func(r *http.Request) (any, error) { return explain(n, r) }))
	mux.HandleFunc("GET "+PathEndpoints, answer(func(*http.Request) (any, error) { return e.Endpoints(), nil }))
	mux.HandleFunc("POST "+PathEndpoints, answer(func(r *http.Request) (any, error) {
		in, err := read[AddRequest](r)
		if err != nil {
			return nil, err
		}
		return e.AddEndpoint(r.Context(), in)
	}))
	mux.HandleFunc("DELETE "+PathEndpoints, answer(func(r *http.Request) (any, error) { return deleteEndpoint(e, r) }))
	mux.HandleFunc("POST "+PathGC, answer(func(r *http.Request) (any, error) {
		in, err := read[GCRequest](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, e.GC(r.Context(), in)
	}))
	mux.Handle("GET "+PathFlows, flows)
	mux.HandleFunc("GET "+PathProfile, profile)
	return onlyOwner(mux)
}

func status(n Node, r *http.Request) (any, error) {
	var wait time.Duration
	if text := r.URL.Query().Get("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 {
			return nil, invalid("wait %q is no duration: write 10s", text)
		}
	}
	return n.Status(r.Context(), wait)
}

func explain(n Node, r *http.Request) (any, error) {
	q := r.URL.Query()
	family := 0
	if text := q.Get("family"); text != "" {
		var err error
		if family, err = strconv.Atoi(text); err != nil || family != 4 && family != 6 {
			return nil, invalid("family %q is neither 4 nor 6", text)
		}
	}
	return n.Explain(q.Get("from"), q.Get("to"), q.Get("port"), family)
}

func deleteEndpoint(e Endpoints, r *http.Request) (any, error) {
	q := r.URL.Query()
	a := Attachment{ContainerID: q.Get("container"), IfName: q.Get("ifname")}
	if a.ContainerID == "" || a.IfName == "" {
		return nil, invalid("container and ifname must be given")
	}
	return struct{}{}, e.DeleteEndpoint(r.Context(), a)
}

func read[T any](r *http.Request) (T, error) {
	var in T
	data, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(data, &in)
	}
	if err != nil {
		return in, invalid("request body: %v", err)
	}
	return in, nil
}

func invalid(format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

// answer writes what f returns.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		if err != nil {
			refuse(w, err)
			return
		}
		write(w, http.StatusOK, out)
	}
}

func refuse(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: CodeInternal, Message: err.Error()}
	}
	code := http.StatusInternalServerError
	switch e.Code {
	case CodeInvalid:
		code = http.StatusBadRequest
	case CodeTryLater:
		code = http.StatusServiceUnavailable
	case 0:
		code = http.StatusConflict
	}
	write(w, code, e)
}

func write(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // a client that went away is no concern of ours
}

type peerKey struct{}

// onlyOwner serves root and the agent's own user, whatever the socket's mode was made.
func onlyOwner(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, ok := r.Context().Value(peerKey{}).(uint32)
		if !ok || uid != 0 && uid != uint32(os.Geteuid()) {
			write(w, http.StatusForbidden, &Error{Message: "only root may ask the agent"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// withPeer notes who connected.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if ctl := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); ctl != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred.Uid)
}

// Listen makes the socket of a state directory, in place of a stale one; nobody but
// its owner can connect, not even for a moment.
func Listen(stateDir string) (net.Listener, error) { return ListenAs(stateDir, SocketName) }

// ListenAs is Listen at a socket of another name.
func ListenAs(stateDir, name string) (net.Listener, error) {
	private, err := os.MkdirTemp(stateDir, ".s-") // 0700
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	defer os.Remove(private)
	path := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make socket in %s: %w", stateDir, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(path, 0o600)
	if err == nil {
		err = os.Rename(path, filepath.Join(stateDir, name))
	}
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", errors.Join(err, l.Close(), os.Remove(path)))
	}
	return l, nil
}

// Serve serves h on l until ctx is over, then lets calls under way end for a moment.
// Their contexts end with ctx.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ConnContext:       withPeer,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if s.Shutdown(end) != nil {
			_ = s.Close()
		}
	})
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve API: %w", err)
	}
	<-ended
	return nil
}
