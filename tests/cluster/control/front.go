package control

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"
)

// Front stands before the API server with certificates of its own, which may be valid at other
// times than now: so a client sees them whose clock is off.
type Front struct {
	s      *Server
	server *httptest.Server
	cert   atomic.Pointer[tls.Certificate]
}

// NewFront goes with the test; its certificate is valid.
func (s *Server) NewFront(t testing.TB) *Front {
	t.Helper()
	f := &Front{s: s}
	f.Valid(-time.Hour, time.Hour)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.authority.pem)
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: s.Addr()})
	behind.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	behind.FlushInterval = -1
	behind.ErrorLog = log.New(io.Discard, "", 0) // clients that go
	f.server = httptest.NewUnstartedServer(behind)
	f.server.Config.ErrorLog = behind.ErrorLog
	f.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*f.cert.Load()}}, nil
	}}
	f.server.StartTLS()
	t.Cleanup(func() { f.server.CloseClientConnections(); f.server.Close() })
	return f
}

// Addr is host and port.
func (f *Front) Addr() string { return f.server.Listener.Addr().String() }

// Valid gives it a certificate for these times from now; connections of before are over.
func (f *Front) Valid(from, to time.Duration) {
	f.s.t.Helper()
	cert, key, err := f.s.authority.signFor(time.Now().Add(from), time.Now().Add(to), pkix.Name{CommonName: "front"})
	f.s.must(err)
	pair, err := tls.X509KeyPair(cert, key)
	f.s.must(err)
	f.cert.Store(&pair)
	if f.server != nil {
		f.server.CloseClientConnections()
	}
}
