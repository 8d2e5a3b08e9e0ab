package main

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// manifests are the shop's, as one would give them to a cluster.
//
//go:embed shop/*.yaml
var manifests embed.FS

func manifest(file string) string {
	text, err := manifests.ReadFile("shop/" + file)
	if err != nil {
		panic(err)
	}
	return string(text)
}

const redisPort = 6379

// Who is there, in the order of the table's rows.
var (
	podNames = []string{"shop/web", "shop/cart", "shop/database", "monitoring/prometheus", "intruder/visitor"}
	clients  = append(podNames[:len(podNames):len(podNames)], "outside")
	policies = []string{"web.yaml", "cart.yaml", "database.yaml", "metrics.yaml"}
)

// shop is the node with its pods and what runs in them.
type shop struct {
	node  *lab.Node
	run   string
	hosts map[string]*lab.Host // by row name
}

// open attaches the pods and starts their servers.
func (s *shop) open(ctx context.Context) error {
	s.hosts = map[string]*lab.Host{}
	s.addHost(s.node.Outside)
	for _, name := range podNames {
		namespace, pod, _ := strings.Cut(name, "/")
		p, err := s.node.AddPod(ctx, namespace, pod)
		if err != nil {
			return err
		}
		s.addHost(&p.Host)
		say("%-22s %-12s %s", name, p.Addr4, p.Addr6)
	}
	for _, serve := range []func() error{
		func() error { return s.nginx("shop/web", 80, 9100) },
		func() error { return s.nginx("shop/cart", 8080, 9100) },
		func() error { return s.redis("shop/database") },
		func() error { return s.nginx("shop/database", 9100) },
	} {
		if err := serve(); err != nil {
			return err
		}
	}
	return s.awaitServers(ctx)
}

// nginx serves a line of text on the ports of a pod, with all its files in the run directory.
func (s *shop) nginx(pod string, ports ...int) error {
	dir, err := s.serverDir("nginx", pod)
	if err != nil {
		return err
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;\nevents {}\nhttp {\n access_log off;\n", dir)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&conf, " %s_temp_path %s;\n", kind, dir)
	}
	for _, port := range ports {
		fmt.Fprintf(&conf, " server { listen %d; listen [::]:%d; location / { return 200 \"%s\\n\"; } }\n", port, port, pod)
	}
	conf.WriteString("}\n")
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf.String()), 0o644); err != nil {
		return err
	}
	return s.start(pod, dir, "/usr/sbin/nginx", "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file)
}

func (s *shop) redis(pod string) error {
	dir, err := s.serverDir("redis", pod)
	if err != nil {
		return err
	}
	return s.start(pod, dir, "/usr/bin/redis-server", "--port", fmt.Sprint(redisPort), "--bind", "0.0.0.0", "::", "--protected-mode", "no",
		"--save", "", "--daemonize", "no", "--dir", dir)
}

func (s *shop) serverDir(kind, pod string) (string, error) {
	dir := filepath.Join(s.run, kind+"-"+strings.ReplaceAll(pod, "/", "-"))
	return dir, os.MkdirAll(dir, 0o755)
}

// start starts a server in a pod; it ends when the node goes down.
func (s *shop) start(pod, dir, name string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := s.hosts[pod].Start(cmd); err != nil {
		return fmt.Errorf("start %s in %s: %w", name, pod, err)
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// awaitServers asks each from within its own pod, where no policy is in the way.
func (s *shop) awaitServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, to := range services {
		for {
			if ok, _ := s.reaches(ctx, to.pod, to); ok {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("server %s does not answer in its own pod", to)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}
