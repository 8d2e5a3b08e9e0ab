// Package control runs a real control plane for tests: etcd and kube-apiserver, on
// loopback, nothing else. There are no controllers and no nodes: objects are what a test
// makes of them.
package control

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	startWait = 3 * time.Minute // 4 s on an idle machine
	issuer    = "https://kubernetes.default.svc"
)

// Server is a control plane.
type Server struct {
	Admin *kubernetes.Clientset // may do everything, and has no proxy between

	t         testing.TB
	bin, dir  string
	authority *authority
	port      int
	etcdPort  int
	admin     rest.Config
	etcd, api *process
}

// Start brings one up; it goes with the test. bin has its programs.
func Start(t testing.TB, bin string) *Server {
	t.Helper()
	s := &Server{t: t, bin: bin, dir: t.TempDir(), port: freePort(t), etcdPort: freePort(t)}
	s.must(s.certificates())
	t.Cleanup(func() {
		if t.Failed() && s.api != nil {
			t.Logf("kube-apiserver logged\n%s", s.api.tail())
		}
		s.api.stop(unix.SIGKILL)
		s.etcd.stop(unix.SIGKILL)
	})
	s.startEtcd()
	s.StartAPI()
	return s
}

func (s *Server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) certificates() (err error) {
	if s.authority, err = newAuthority(); err != nil {
		return err
	}
	cert, key, err := s.authority.sign(pkix.Name{CommonName: "kube-apiserver"})
	if err != nil {
		return err
	}
	_, account, err := newKey()
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"ca.crt": s.authority.pem, "api.crt": cert, "api.key": key, "account.key": account} {
		if err := write(s.path(name), text); err != nil {
			return err
		}
	}
	s.admin = rest.Config{Host: s.Addr(), QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: s.authority.pem}}
	s.admin.CertData, s.admin.KeyData, err = s.authority.sign(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	s.Admin, err = kubernetes.NewForConfig(&s.admin)
	return err
}

// Addr is host and port of the API server.
func (s *Server) Addr() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

func (s *Server) startEtcd() {
	s.t.Helper()
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort), fmt.Sprintf("http://127.0.0.1:%d", freePort(s.t))
	var err error
	s.etcd, err = start(s.dir, s.bin+"/etcd", "--name=weirt", "--data-dir="+s.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=weirt="+peer)
	s.must(err)
}

// StartAPI starts the API server on the same address and data as before.
func (s *Server) StartAPI() {
	s.t.Helper()
	var err error
	s.api, err = start(s.dir, s.bin+"/kube-apiserver",
		"--etcd-servers="+fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", s.port), "--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16,fd96::/112", "--allow-privileged",
		"--tls-cert-file="+s.path("api.crt"), "--tls-private-key-file="+s.path("api.key"), "--client-ca-file="+s.path("ca.crt"),
		"--authorization-mode=Node,RBAC", "--disable-admission-plugins=ServiceAccount",
		"--service-account-issuer="+issuer, "--api-audiences="+issuer,
		"--service-account-key-file="+s.path("account.key"), "--service-account-signing-key-file="+s.path("account.key"))
	s.must(err)
	s.awaitReady()
}

func (s *Server) awaitReady() {
	s.t.Helper()
	for end := time.Now().Add(startWait); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		_, err := s.Admin.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			_, err = s.Admin.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
		}
		cancel()
		if err == nil {
			return
		}
		s.must(s.etcd.running())
		s.must(s.api.running())
		if time.Now().After(end) {
			s.t.Fatalf("kube-apiserver is not ready after %s: %v\n%s", startWait, err, s.api.tail())
		}
	}
}

// StopAPI kills the API server; what it stored stays.
func (s *Server) StopAPI() {
	s.api.stop(unix.SIGKILL)
	s.api = nil
}

// Token of a service account, for an hour.
func (s *Server) Token(namespace, account string) string {
	s.t.Helper()
	r, err := s.Admin.CoreV1().ServiceAccounts(namespace).CreateToken(s.t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	s.must(err)
	return r.Status.Token
}

// Kubeconfig writes one for the API server behind addr; an empty token is the admin's.
func (s *Server) Kubeconfig(addr, token string) string {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "client-")
	s.must(err)
	user := "{token: " + token + "}"
	if token == "" {
		s.must(write(dir+"/admin.crt", s.admin.CertData))
		s.must(write(dir+"/admin.key", s.admin.KeyData))
		user = fmt.Sprintf("{client-certificate: %s/admin.crt, client-key: %s/admin.key}", dir, dir)
	}
	path := dir + "/kubeconfig"
	s.must(write(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: u, user: %s}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
`, addr, s.path("ca.crt"), user)))
	return path
}
