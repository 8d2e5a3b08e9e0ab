package hubble

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStockClientOverTCP, with mutual TLS, whose certificates are renewed meanwhile.
func TestStockClientOverTCP(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ours, theirs := newAuthority(t), newAuthority(t)
	writePEM(t, file("ca.crt"), "CERTIFICATE", ours.cert.Raw)
	ours.issue(dir, "tls", time.Hour*24*30)
	ours.issue(dir, "client", time.Hour)
	ours.issue(dir, "expired", -time.Hour)
	theirs.issue(dir, "stranger", time.Hour)
	s := newScene(t, "--hubble-listen", ":4244", "--hubble-tls-cert", file("tls.crt"), "--hubble-tls-key", file("tls.key"), "--hubble-tls-client-ca", file("ca.crt"))
	s.talk()
	ask := func(client string) (string, error) {
		return s.Outside.Run(s.ctx, s.hubble, "--config", "", "--server", "tls://192.0.2.1:4244", "--tls-ca-cert-files", file("ca.crt"),
			"--tls-client-cert-file", file(client+".crt"), "--tls-client-key-file", file(client+".key"), "--tls-server-name", serverName,
			"observe", "--all", "--verdict", "DROPPED", "--color", "never")
	}
	for client, want := range map[string]string{
		"client": "shop/db-0:8080", "expired": "expired certificate", "stranger": "unknown certificate authority",
	} {
		out, err := ask(client)
		if !strings.Contains(out, want) || (err == nil) != (client == "client") {
			t.Errorf("with the certificate %s: %v\n%s\nwant %s", client, err, out, want)
		}
	}
	ours.issue(dir, "tls", -time.Hour)
	if out, err := ask("client"); err == nil || !strings.Contains(out, "certificate has expired") {
		t.Errorf("of an agent whose certificate has expired: %v\n%s", err, out)
	}
	if r := s.Weir(s.ctx, "status"); !strings.Contains(r.Stdout, "expired at") {
		t.Errorf("weir status does not say that the certificate expired:\n%s%s", r.Stdout, r.Stderr)
	}
	ours.issue(dir, "tls", time.Hour*24*30)
	if out, err := ask("client"); err != nil {
		t.Errorf("of an agent whose certificate was renewed: %v\n%s", err, out)
	}
	out, err := s.Outside.Run(s.ctx, s.hubble, "--config", "", "--server", "192.0.2.1:4244", "--timeout", "2s", "status")
	if err == nil {
		t.Errorf("in the clear:\n%s", out)
	}
	if peers := s.says("list", "nodes", "-o", "json"); !strings.Contains(peers, serverName) || !strings.Contains(peers, ":4244") {
		t.Errorf("list nodes says\n%s", peers)
	}
}

const serverName = "worker-1.default.hubble-grpc.cilium.io"

type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, key: newKey(t)}
	a.cert = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour * 24 * 365)}, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, "make a key", err)
	return k
}

func (a *authority) sign(c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	c.SerialNumber, c.NotBefore, c.Subject = big.NewInt(time.Now().UnixNano()), time.Now().Add(-48*time.Hour), pkix.Name{CommonName: "weir test"}
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	must(a.t, "sign", err)
	out, err := x509.ParseCertificate(der)
	must(a.t, "sign", err)
	return out
}

// issue writes a certificate that is good for a while, and its key.
func (a *authority) issue(dir, name string, good time.Duration) {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{
		DNSNames: []string{"*.default.hubble-grpc.cilium.io"}, NotAfter: time.Now().Add(good), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, "encode", err)
	writePEM(a.t, filepath.Join(dir, name+".crt"), "CERTIFICATE", cert.Raw)
	writePEM(a.t, filepath.Join(dir, name+".key"), "PRIVATE KEY", der)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	must(t, "write", os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
