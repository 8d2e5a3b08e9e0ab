package hubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/datapath"
)

// followVariable makes a process of the tests' binary a follower: how, and at which socket.
const followVariable = "WEIR_TEST_FOLLOW"

func TestMain(m *testing.M) {
	if how, socket, ok := strings.Cut(os.Getenv(followVariable), " "); ok {
		fmt.Fprintln(os.Stderr, followAt(how, socket))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func followAt(how, socket string) error {
	if how == "http" {
		c := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
		r, err := c.Get("http://weir" + api.PathFlows + "?follow=true&new=true")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r.Body)
		return errors.Join(errors.New("the stream ended"), err)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := observerpb.NewObserverClient(conn).GetFlows(context.Background(), &observerpb.GetFlowsRequest{Follow: true})
	for err == nil {
		_, err = stream.Recv()
	}
	return errors.Join(errors.New("the stream ended"), err)
}

// paced is a datapath.Reader of n flows' records, each new and then ended, so many a second.
type paced struct {
	n, rate          int
	made, due        int
	start            time.Time
	begin, done, end chan struct{}
}

func (p *paced) Read() (datapath.Event, error) {
	if p.made == 0 {
		select {
		case <-p.begin:
		case <-p.end:
			return datapath.Event{}, os.ErrClosed
		}
		p.start = time.Now()
	}
	for p.made >= p.due && p.made < p.n {
		time.Sleep(2 * time.Millisecond)
		p.due = int(time.Since(p.start).Seconds() * float64(p.rate))
	}
	if p.made == p.n {
		close(p.done)
		<-p.end
		return datapath.Event{}, os.ErrClosed
	}
	p.made++
	e := flow(7010)
	e.Source, e.Created = netip.AddrPortFrom(e.Source.Addr(), uint16(p.made/2)), uint64(p.made/2)
	e.Path, e.Ifindex, e.Epoch, e.Packets, e.Bytes = 1, 7, 12, [2]uint64{1, 0}, [2]uint64{60, 0}
	if p.made%2 == 0 {
		e.Kind, e.End, e.TCPFlags, e.Age = datapath.EventEnded, 1, 0x1b13, 12345678*time.Nanosecond
		e.Packets, e.Bytes = [2]uint64{6, 5}, [2]uint64{345, 298}
	}
	return e, nil
}

func (p *paced) Close() error { close(p.end); return nil }

// What a record costs the CPUs of the process that serves it to a reader in another one.
func BenchmarkFollower(b *testing.B) {
	for _, how := range []string{"nobody", "grpc", "http"} {
		b.Run(how, func(b *testing.B) { benchmarkFollower(b, how) })
	}
}

func benchmarkFollower(b *testing.B, how string) {
	defer debug.SetGCPercent(debug.SetGCPercent(50)) // the agent's
	dir := b.TempDir()
	flows := flowlog.New(names{}, flowlog.Options{Node: "worker-1", Version: "0.1.0"})
	server := New(Options{Flows: flows, Node: "worker-1", Version: "weir 0.1.0", StateDir: dir, Log: slog.New(slog.DiscardHandler)})
	feed := &paced{n: b.N, rate: 40000, begin: make(chan struct{}), done: make(chan struct{}), end: make(chan struct{})}
	sockets := map[string]string{"grpc": filepath.Join(dir, SocketName), "http": filepath.Join(dir, "http.sock")}
	ctx, cancel := context.WithCancel(b.Context())
	ran := make(chan error, 2)
	go func() { ran <- flows.Run(ctx, feed) }()
	go func() { ran <- server.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-ran, <-ran); err != nil {
			b.Error(err)
		}
	}()
	l, err := net.Listen("unix", sockets["http"])
	if err != nil {
		b.Fatal(err)
	}
	web := &http.Server{Handler: flows}
	go func() { _ = web.Serve(l) }()
	defer web.Close()
	if socket := sockets[how]; socket != "" {
		await(b, "the socket", func() bool { _, err := os.Stat(socket); return err == nil })
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stderr = append(os.Environ(), followVariable+"="+how+" "+socket), os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		await(b, "the follower", func() bool { return open(flows) == 1 })
	}
	before := cpu(b)
	b.ResetTimer()
	close(feed.begin)
	<-feed.done
	for _, r := range flows.Status().Readers {
		await(b, "the follower has all", func() bool { r = flows.Status().Readers[0]; return r.Taken+r.Lost == uint64(b.N) })
		b.ReportMetric(float64(r.Lost), "lost")
	}
	time.Sleep(20 * time.Millisecond) // what is taken is written
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/record")
}

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
