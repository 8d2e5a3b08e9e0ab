// Package control runs a real control plane for tests: etcd and kube-apiserver on loopback
// and nothing else, so that objects are what a test makes of them; or, for nodes to join,
// with controllers and a scheduler in a network namespace.
package control

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/weirnet/weir/tests/lab"
)

const (
	startWait = 3 * time.Minute // 4 s on an idle machine
	issuer    = "https://kubernetes.default.svc"
	services  = "10.96.0.0/16,fd96::/112"
	firstIP   = "10.96.0.1" // of Services: the API server's
)

// Place is where a control plane runs that nodes join.
type Place struct {
	Netns     string
	Addresses []string // of the API server, there
	Pods      []string // a range of each family, of which nodes get parts
}

// Server is a control plane.
type Server struct {
	Admin *kubernetes.Clientset // may do everything, and has no proxy between

	t         testing.TB
	bin, dir  string
	place     *Place // nil: loopback alone
	authority *authority
	port      int
	etcdPort  int
	admin     rest.Config
	etcd, api *Process
	others    []*Process
}

// Start brings one up on loopback; it goes with the test. bin has its programs.
func Start(t testing.TB, bin string) *Server {
	t.Helper()
	return start(t, &Server{t: t, bin: bin, dir: t.TempDir(), port: freePort(t), etcdPort: freePort(t)})
}

// StartAt brings up one with controllers and a scheduler, whose files are in dir.
func StartAt(t testing.TB, bin, dir string, place Place) *Server {
	t.Helper()
	s := start(t, &Server{t: t, bin: bin, dir: dir, place: &place, port: 6443, etcdPort: 2379})
	s.startControllers()
	return s
}

func start(t testing.TB, s *Server) *Server {
	t.Helper()
	s.must(s.certificates())
	t.Cleanup(func() {
		if t.Failed() && s.api != nil {
			t.Logf("kube-apiserver logged\n%s", s.api.Tail())
		}
		for _, p := range s.others {
			p.Stop(unix.SIGKILL)
		}
		s.api.Stop(unix.SIGKILL)
		s.etcd.Stop(unix.SIGKILL)
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

// host is the API server's first address.
func (s *Server) host() string {
	if s.place != nil {
		return s.place.Addresses[0]
	}
	return "127.0.0.1"
}

// Addr is host and port of the API server.
func (s *Server) Addr() string { return net.JoinHostPort(s.host(), strconv.Itoa(s.port)) }

func (s *Server) certificates() (err error) {
	if s.authority, err = newAuthority(); err != nil {
		return err
	}
	addresses := []string{"127.0.0.1", firstIP}
	if s.place != nil {
		addresses = append(addresses, s.place.Addresses...)
	}
	cert, key, err := s.authority.sign(pkix.Name{CommonName: "kube-apiserver"}, addresses...)
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
	if s.place != nil {
		s.admin.Dial = s.dial
	}
	s.admin.CertData, s.admin.KeyData, err = s.authority.sign(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	s.Admin, err = kubernetes.NewForConfig(&s.admin)
	return err
}

// dial from the control plane's own network namespace.
func (s *Server) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	at := lab.Host{Netns: s.place.Netns}
	err = at.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Config of a client that may do everything.
func (s *Server) Config() *rest.Config { return rest.CopyConfig(&s.admin) }

// CA is the file of the certificate that all others are signed with.
func (s *Server) CA() string { return s.path("ca.crt") }

func (s *Server) run(program string, args ...string) *Process {
	s.t.Helper()
	netns := ""
	if s.place != nil {
		netns = s.place.Netns
	}
	p, err := Spawn(s.path(program+".log"), In(netns, filepath.Join(s.bin, program), args...))
	s.must(err)
	return p
}

func (s *Server) startEtcd() {
	s.t.Helper()
	peerPort := s.etcdPort + 1
	if s.place == nil {
		peerPort = freePort(s.t)
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort), fmt.Sprintf("http://127.0.0.1:%d", peerPort)
	s.etcd = s.run("etcd", "--name=weirt", "--data-dir="+s.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=weirt="+peer)
}

// StartAPI starts the API server on the same address and data as before.
func (s *Server) StartAPI() {
	s.t.Helper()
	args := []string{
		"--etcd-servers=" + fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort),
		"--bind-address=" + s.host(), "--advertise-address=" + s.host(), fmt.Sprintf("--secure-port=%d", s.port),
		"--service-cluster-ip-range=" + services, "--allow-privileged",
		"--tls-cert-file=" + s.path("api.crt"), "--tls-private-key-file=" + s.path("api.key"), "--client-ca-file=" + s.path("ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--service-account-issuer=" + issuer, "--api-audiences=" + issuer,
		"--service-account-key-file=" + s.path("account.key"), "--service-account-signing-key-file=" + s.path("account.key"),
	}
	if s.place == nil {
		args = append(args, "--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount")
	} else {
		s.must(s.keyPair("kubelet-client", pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}))
		args = append(args, "--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP",
			"--kubelet-client-certificate="+s.path("kubelet-client.crt"), "--kubelet-client-key="+s.path("kubelet-client.key"))
	}
	s.api = s.run("kube-apiserver", args...)
	s.awaitReady()
}

func (s *Server) startControllers() {
	s.t.Helper()
	manager, scheduler := "kube-controller-manager", "kube-scheduler"
	for _, name := range []string{manager, scheduler} {
		s.UserKubeconfig(s.path(name+".kubeconfig"), pkix.Name{CommonName: "system:" + name})
	}
	who := func(name string) []string {
		c := s.path(name + ".kubeconfig")
		return []string{"--bind-address=127.0.0.1", "--leader-elect=false", "--kubeconfig=" + c, "--authentication-kubeconfig=" + c, "--authorization-kubeconfig=" + c}
	}
	s.others = append(s.others, s.run(manager, append(who(manager),
		"--use-service-account-credentials", "--service-account-private-key-file="+s.path("account.key"), "--root-ca-file="+s.path("ca.crt"),
		"--allocate-node-cidrs", "--cluster-cidr="+strings.Join(s.place.Pods, ","), "--service-cluster-ip-range="+services,
		"--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64")...))
	s.others = append(s.others, s.run(scheduler, who(scheduler)...))
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
		s.must(s.etcd.Running())
		s.must(s.api.Running())
		if time.Now().After(end) {
			s.t.Fatalf("kube-apiserver is not ready after %s: %v\n%s", startWait, err, s.api.Tail())
		}
	}
}

// APIPid is the API server's process.
func (s *Server) APIPid() int { return s.api.Pid() }

// StopAPI kills the API server; what it stored stays.
func (s *Server) StopAPI() {
	s.api.Stop(unix.SIGKILL)
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
	path := filepath.Join(dir, "kubeconfig")
	if token == "" {
		s.must(write(dir+"/admin.crt", s.admin.CertData))
		s.must(write(dir+"/admin.key", s.admin.KeyData))
		s.kubeconfig(path, addr, fmt.Sprintf("{client-certificate: %s/admin.crt, client-key: %s/admin.key}", dir, dir))
	} else {
		s.kubeconfig(path, addr, "{token: "+token+"}")
	}
	return path
}

// UserKubeconfig writes one with a user's certificate, which is written beside it, and serves
// at addresses, too.
func (s *Server) UserKubeconfig(path string, user pkix.Name, addresses ...string) {
	s.t.Helper()
	name := strings.TrimSuffix(filepath.Base(path), ".kubeconfig")
	s.must(s.keyPair(name, user, addresses...))
	s.kubeconfig(path, s.Addr(), fmt.Sprintf("{client-certificate: %s, client-key: %s}", s.path(name+".crt"), s.path(name+".key")))
}

// keyPair writes NAME.crt and NAME.key.
func (s *Server) keyPair(name string, user pkix.Name, addresses ...string) error {
	cert, key, err := s.authority.sign(user, addresses...)
	if err != nil {
		return err
	}
	if err := write(s.path(name+".crt"), cert); err != nil {
		return err
	}
	return write(s.path(name+".key"), key)
}

func (s *Server) kubeconfig(path, addr, user string) {
	s.t.Helper()
	s.must(write(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: u, user: %s}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
`, addr, s.path("ca.crt"), user)))
}
