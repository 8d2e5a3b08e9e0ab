package hubble

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, key: newKey(t)}
	a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) sign(c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	c.SerialNumber, c.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-48*time.Hour)
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// issue writes a certificate and its key that are good for a name for so long.
func (a *authority) issue(dir, file, name string, good time.Duration) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(good),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, filepath.Join(dir, file+".crt"), "CERTIFICATE", cert.Raw)
	writePEM(a.t, filepath.Join(dir, file+".key"), "PRIVATE KEY", der)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

const ownName = "worker-1.default.hubble-grpc.cilium.io"

// secured is a node with certificates of an authority in a directory.
func secured(t *testing.T) (n *node, tcp *TCP, ours *authority, dir string) {
	t.Helper()
	dir, ours = t.TempDir(), newAuthority(t, "ours")
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", ours.cert.Raw)
	ours.issue(dir, "tls", ownName, 30*24*time.Hour)
	tcp, err := NewTCP(freePort(t), &Files{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")}, false)
	if err != nil {
		t.Fatal(err)
	}
	n = start(t, func(o *Options) { o.TCP = tcp })
	await(t, "the port", func() bool {
		c, err := net.Dial("tcp", tcp.Listen.String())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return n, tcp, ours, dir
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// statusOver asks for the status over a connection of its own.
func statusOver(t *testing.T, at netip.AddrPort, c credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient(at.String(), grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = observerpb.NewObserverClient(conn).ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	return err
}

func TestMutualTLS(t *testing.T) {
	_, tcp, ours, dir := secured(t)
	theirs := newAuthority(t, "theirs")
	client := ours.issue(dir, "client", "client", time.Hour)
	for name, c := range map[string]struct {
		creds credentials.TransportCredentials
		want  string // in the error, "" = none
	}{
		"good":         {credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), ServerName: ownName, Certificates: []tls.Certificate{client}}), ""},
		"of nobody":    {credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), ServerName: ownName}), "certificate required"},
		"of another":   {credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), ServerName: ownName, GetClientCertificate: always(theirs.issue(dir, "x", "client", time.Hour))}), "unknown certificate authority"},
		"expired":      {credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), ServerName: ownName, GetClientCertificate: always(ours.issue(dir, "y", "client", -time.Hour))}), "expired certificate"},
		"of its own":   {credentials.NewTLS(&tls.Config{RootCAs: theirs.pool(), ServerName: ownName, Certificates: []tls.Certificate{client}}), "certificate signed by unknown authority"},
		"in the clear": {insecure.NewCredentials(), "connection"},
	} {
		err := statusOver(t, tcp.Listen, c.creds)
		if c.want == "" && err != nil || c.want != "" && (status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("a certificate %s: %v, want %q", name, err, c.want)
		}
	}
	if got := tcp.Warnings(); len(got) > 0 {
		t.Errorf("warnings: %q", got)
	}
}

func always(c tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
}

// Files are read again when they change. What cannot be read leaves in force what was; what
// has expired is said to clients and in the status.
func TestCertificatesAreRenewed(t *testing.T) {
	_, tcp, ours, dir := secured(t)
	client := ours.issue(dir, "client", "client", time.Hour)
	connect := func() error {
		return statusOver(t, tcp.Listen, credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), ServerName: ownName, Certificates: []tls.Certificate{client}}))
	}
	warned := func(want string) {
		t.Helper()
		got := tcp.Warnings()
		if want == "" && len(got) > 0 || want != "" && !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("warnings %q, want %q", got, want)
		}
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	ours.issue(dir, "tls", ownName, 24*time.Hour)
	warned("expires at")
	if err := connect(); err != nil {
		t.Error(err)
	}
	ours.issue(dir, "tls", ownName, -time.Hour)
	warned("clients cannot connect until the file is renewed")
	if err := connect(); err == nil || !strings.Contains(err.Error(), "certificate has expired") {
		t.Errorf("an expired one: %v", err)
	}
	ours.issue(dir, "tls", ownName, 30*24*time.Hour)
	warned("")
	if err := connect(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	warned("the ones before stay in force")
	if err := connect(); err != nil {
		t.Error(err)
	}
	ours.issue(dir, "tls", ownName, 30*24*time.Hour)
	if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	warned("ca.crt")
	if err := connect(); err != nil {
		t.Error(err)
	}
	theirs := newAuthority(t, "theirs")
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", theirs.cert.Raw)
	warned("")
	if err := connect(); err == nil {
		t.Error("a client of an authority that was taken away is let in")
	}
}

// Certificates that are not there at the start keep clients out, not the agent down.
func TestCertificatesToCome(t *testing.T) {
	dir := t.TempDir()
	tcp, err := NewTCP(freePort(t), &Files{Cert: dir + "/tls.crt", Key: dir + "/tls.key", ClientCA: dir + "/ca.crt"}, false)
	if err != nil {
		t.Fatal(err)
	}
	n := start(t, func(o *Options) { o.TCP = tcp })
	if got := tcp.Warnings(); len(got) != 1 || !strings.Contains(got[0], "no client can connect") || !strings.Contains(got[0], "tls.crt") {
		t.Errorf("warnings: %q", got)
	}
	if _, err := ask(t, n.dial(), &observerpb.GetFlowsRequest{}); err != nil {
		t.Errorf("the socket: %v", err)
	}
	ours := newAuthority(t, "ours")
	client := ours.issue(dir, "client", "client", time.Hour)
	ours.issue(dir, "tls", ownName, 30*24*time.Hour)
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", ours.cert.Raw)
	if err := statusOver(t, tcp.Listen, credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), ServerName: ownName, Certificates: []tls.Certificate{client}})); err != nil {
		t.Error(err)
	}
}

// A port that somebody has is a warning, and is taken once it is free.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := NewTCP(netip.MustParseAddrPort(l.Addr().String()), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	start(t, func(o *Options) { o.TCP = tcp })
	await(t, "the warning", func() bool {
		w := tcp.Warnings()
		return len(w) == 1 && strings.Contains(w[0], "address already in use")
	})
	l.Close()
	await(t, "the port", func() bool { return statusOver(t, tcp.Listen, insecure.NewCredentials()) == nil })
	if got := tcp.Warnings(); len(got) > 0 {
		t.Errorf("warnings: %q", got)
	}
}

func TestTCPSettings(t *testing.T) {
	for _, c := range []struct {
		listen   string
		files    *Files
		insecure bool
		want     string
	}{
		{"127.0.0.1:4244", nil, false, ""},
		{"[::1]:4244", nil, false, ""},
		{"0.0.0.0:4244", &Files{}, false, ""},
		{"192.0.2.1:4244", nil, true, ""},
		{"192.0.2.1:4244", nil, false, "can be reached from other machines"},
		{"[::]:4244", nil, false, "can be reached from other machines"},
		{"127.0.0.1:0", nil, false, "the port must not be 0"},
	} {
		_, err := NewTCP(netip.MustParseAddrPort(c.listen), c.files, c.insecure)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.listen, err, c.want)
		}
	}
}
