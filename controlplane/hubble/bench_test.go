package hubble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"

	"net"
	"net/netip"
)

// followVariable makes a process of the tests' binary a follower at a socket.
const followVariable = "WEIR_TEST_FOLLOW"

func TestMain(m *testing.M) {
	how, socket, ok := "", "", false
	if s := os.Getenv(followVariable); s != "" {
		_, _ = fmt.Sscanf(s, "%s %s", &how, &socket)
		ok = true
	}
	if ok {
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

// pacedFeed yields flows that begin and end, rate a second.
type pacedFeed struct {
	n, rate int
	made    int
	due     int
	began   time.Time
	go_     chan struct{}
	done    chan struct{}
	closed  chan struct{}
}

func (f *pacedFeed) Read() (datapath.Event, error) {
	if f.made == 0 {
		select {
		case <-f.go_:
		case <-f.closed:
			return datapath.Event{}, os.ErrClosed
		}
		f.began = time.Now()
	}
	for f.made >= f.due && f.made < f.n {
		time.Sleep(2 * time.Millisecond)
		f.due = int(time.Since(f.began).Seconds() * float64(f.rate))
	}
	if f.made == f.n {
		close(f.done)
		<-f.closed
		return datapath.Event{}, os.ErrClosed
	}
	f.made++
	e := datapath.Event{
		Kind: datapath.EventNew, Time: time.Now(), Source: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 2}), uint16(f.made/2)),
		Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 3}), 7010), Protocol: datapath.TCP, TCPFlags: 2, Created: uint64(f.made / 2),
		Endpoint: [2]uint32{1, 2}, Identity: [2]identity.Number{1001, 1002}, Rule: [2]uint32{datapath.RuleNotIsolated, datapath.RuleNotIsolated},
		Direction: datapath.None, Judged: datapath.JudgedEgress | datapath.JudgedIngress, Path: 1, Ifindex: 7, Epoch: 12, Packets: [2]uint64{1, 0}, Bytes: [2]uint64{60, 0},
	}
	if f.made%2 == 0 {
		e.Kind, e.End, e.TCPFlags, e.Age = datapath.EventEnded, 1, 0x1b13, 12345678*time.Nanosecond
		e.Packets, e.Bytes = [2]uint64{6, 5}, [2]uint64{345, 298}
	}
	return e, nil
}

func (f *pacedFeed) Close() error { close(f.closed); return nil }

// What a record costs the agent's CPUs with a reader in another process.
func BenchmarkFollower(b *testing.B) {
	for _, how := range []string{"none", "grpc", "http"} {
		b.Run(how, func(b *testing.B) {
			defer debug.SetGCPercent(debug.SetGCPercent(50))
			dir := b.TempDir()
			flows := flowlog.New(names{}, flowlog.Options{Node: "worker-1", Version: "0.1.0"})
			server := New(Options{Flows: flows, Node: "worker-1", Version: "weir 0.1.0", StateDir: dir, Log: slog.New(slog.DiscardHandler)})
			f := &pacedFeed{n: b.N, rate: 40000, go_: make(chan struct{}), done: make(chan struct{}), closed: make(chan struct{})}
			ctx, cancel := context.WithCancel(b.Context())
			ran := make(chan error, 2)
			go func() { ran <- flows.Run(ctx, f) }()
			go func() { ran <- server.Run(ctx) }()
			l, err := net.Listen("unix", filepath.Join(dir, "http.sock"))
			if err != nil {
				b.Fatal(err)
			}
			hs := &http.Server{Handler: flows}
			go func() { _ = hs.Serve(l) }()
			defer hs.Close()
			defer func() {
				cancel()
				<-ran
				<-ran
			}()
			if how != "none" {
				socket := filepath.Join(dir, map[string]string{"grpc": SocketName, "http": "http.sock"}[how])
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					if _, err := os.Stat(socket); err == nil {
						break
					}
				}
				cmd := exec.Command(os.Args[0])
				cmd.Env, cmd.Stderr = append(os.Environ(), followVariable+"="+how+" "+socket), os.Stderr
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
				for open(flows) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			before := cpu(b)
			b.ResetTimer()
			close(f.go_)
			<-f.done
			for how != "none" {
				if s := flows.Status(); s.Readers[0].Taken+s.Readers[0].Lost == uint64(b.N) {
					b.ReportMetric(float64(s.Readers[0].Lost), "lost")
					break
				}
				time.Sleep(time.Millisecond)
			}
			time.Sleep(20 * time.Millisecond)
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/record")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
