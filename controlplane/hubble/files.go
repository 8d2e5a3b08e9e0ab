package hubble

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Files of mutual TLS, read again when they change: certificates are renewed while the
// agent runs. What cannot be read leaves in force what was.
type Files struct {
	Cert, Key string // PEM: of this node, with what leads to its authority
	ClientCA  string // PEM: the authorities that clients' certificates are of

	mu      sync.Mutex
	seen    [3]stamp
	inForce *tls.Config
	problem error // of the files as they are now
	expires []expiry
}

// stamp tells versions of a file apart.
type stamp struct {
	changed time.Time
	size    int64
	mode    os.FileMode
}

// expiry is when a certificate of a file stops being good.
type expiry struct {
	path, name string
	at         time.Time
}

// config is that of a listener: what is in force when a client comes.
func (f *Files) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.refresh()
		if f.inForce == nil {
			return nil, fmt.Errorf("no certificates to serve flows with: %w", f.problem)
		}
		return f.inForce, nil
	}}
}

// refresh reads the files if they changed; f.mu is held.
func (f *Files) refresh() {
	var now [3]stamp
	for i, path := range []string{f.Cert, f.Key, f.ClientCA} {
		if info, err := os.Stat(path); err == nil {
			now[i] = stamp{info.ModTime(), info.Size(), info.Mode()}
		}
	}
	if now == f.seen && f.inForce != nil && f.problem == nil {
		return
	}
	config, expires, err := f.load()
	f.seen, f.problem = now, err
	if err == nil {
		f.inForce, f.expires = config, expires
	}
}

func (f *Files) load() (*tls.Config, []expiry, error) {
	own, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	data, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, nil, err
	}
	authorities, err := parseAll(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.ClientCA, err)
	}
	pool := x509.NewCertPool()
	expires := []expiry{{f.Cert, own.Leaf.Subject.CommonName, own.Leaf.NotAfter}}
	for _, c := range authorities {
		pool.AddCert(c)
		expires = append(expires, expiry{f.ClientCA, c.Subject.CommonName, c.NotAfter})
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}, expires, nil
}

func parseAll(data []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return out, nil
}

// soon is how long before a certificate expires its owner is told.
const soon = 7 * 24 * time.Hour

func (f *Files) warnings(now time.Time) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	if f.problem != nil {
		text := "no client can connect"
		if f.inForce != nil {
			text = "the ones before stay in force"
		}
		out = append(out, fmt.Sprintf("hubble: certificates cannot be read: %v; %s", f.problem, text))
	}
	for _, e := range f.expires {
		switch {
		case now.After(e.at):
			out = append(out, fmt.Sprintf("hubble: certificate %q of %s expired at %s: clients cannot connect until the file is renewed", e.name, e.path, e.at.UTC().Format(time.RFC3339)))
		case now.Add(soon).After(e.at):
			out = append(out, fmt.Sprintf("hubble: certificate %q of %s expires at %s", e.name, e.path, e.at.UTC().Format(time.RFC3339)))
		}
	}
	return out
}
