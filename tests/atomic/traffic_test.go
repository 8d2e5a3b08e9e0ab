package atomic

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

// TestNoRealPacketSeesAMixture is the flood by sockets: pods with namespaces of their own
// send datagrams and open connections to one another through their veths. What each packet
// was judged under is what its flow's event says, and the denials' counts.
func TestNoRealPacketSeesAMixture(t *testing.T) {
	for _, name := range []string{"policies", "swap"} {
		s := scenes[name]
		t.Run(name, func(t *testing.T) {
			f, pods := newLiveFlood(t, s)
			events := f.watch(t)
			var done []<-chan error
			for i, p := range pods {
				sender := &sender{flood: f, from: uint32(i + 1)}
				done = append(done, p.Thread(sender.run))
			}
			f.judges = len(pods)
			f.flip(t, *commits/4)
			for _, d := range done {
				if err := <-d; err != nil {
					t.Error(err)
				}
			}
			f.checkTable(t)
			if err := f.checkDenials(tally{dropped: -1}); err != nil {
				t.Error(err)
			}
			events.check(t, f)
			least, median, most := spread(events.epochs, f.base, *commits/4)
			t.Attr("judged", fmt.Sprintf("%d packets of sockets; flows and denials told an epoch: least %d, median %d, most %d", f.sent.Load(), least, median, most))
		})
	}
}

func newLiveFlood(t *testing.T, s scene) (*flood, []*testnode.LivePod) {
	t.Helper()
	short := 300 * time.Millisecond
	f := emptyFlood(t, s, loader.Config{Timeouts: loader.Timeouts{SYN: short, TCP: short, Closing: short, UDP: time.Second, UDPStream: time.Second}})
	var pods []*testnode.LivePod
	for i := range f.locals {
		ep := &f.locals[i].Endpoint
		p := f.node.AddLivePod(t, i+1, ep.Addr4, ep.Addr6)
		ep.Ifindex, ep.MAC = uint32(p.Ifindex), p.MAC
		pods = append(pods, p)
	}
	f.compile(t, s)
	return f, pods
}

// sender is a pod's process. It tells the committer how far it is, like a judge.
type sender struct {
	*flood
	from uint32
}

const socketsOfSender = 64

func (s *sender) run() (err error) {
	defer s.stop()
	// Others send to this one; nobody reads, and what does not fit is dropped silently.
	server, err := datagramSocket()
	if err != nil {
		return err
	}
	defer unix.Close(server)
	if err := unix.Bind(server, &unix.SockaddrInet6{Port: dport}); err != nil {
		return err
	}
	sockets := make([]int, socketsOfSender)
	for i := range sockets {
		if sockets[i], err = datagramSocket(); err != nil {
			return err
		}
		defer func() { unix.Close(sockets[i]) }()
	}
	for n := 0; s.over.Err() == nil; {
		for _, p := range s.pairs {
			if p.from != s.from {
				continue
			}
			if err := s.sendOne(n, &sockets[n%socketsOfSender], s.addresses[p][1]); err != nil {
				return err
			}
			n++
		}
	}
	return nil
}

// sendOne sends a datagram, of a new flow or an old, and now and then opens a connection.
func (s *sender) sendOne(n int, socket *int, to netip.Addr) (err error) {
	if n%3 == 0 {
		unix.Close(*socket)
		if *socket, err = datagramSocket(); err != nil {
			return err
		}
	}
	if n%16 == 0 {
		if err := connectOnce(to); err != nil {
			return err
		}
	}
	if n%packetsAnEpoch == 0 {
		s.sent.Add(packetsAnEpoch)
		select {
		case s.judged <- struct{}{}:
		default:
		}
	}
	return sendDatagram(*socket, to)
}

func datagramSocket() (int, error) {
	return unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
}

// sendDatagram sends to dport; that it may be dropped on the way is what this is about.
func sendDatagram(fd int, to netip.Addr) error {
	err := unix.Sendto(fd, []byte("ping"), 0, &unix.SockaddrInet6{Port: dport, Addr: to.As16()})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}

// connectOnce begins a TCP connection and lets go of it: nobody listens, so the answer is a
// reset, or nothing.
func connectOnce(to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet6{Port: dport, Addr: to.As16()})
	if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

// checkTable holds every entry that is left to the state of the epoch in its stamp.
func (f *flood) checkTable(t *testing.T) {
	t.Helper()
	entries, packets := 0, uint64(0)
	for flow, err := range f.node.Kernel.Flows() {
		if err != nil {
			t.Fatal(err)
		}
		if flow.Protocol != datapath.UDP && flow.Protocol != datapath.TCP || flow.Dropped {
			continue
		}
		from, to := flow.Ends[flow.Begun].Addr(), flow.Ends[1-flow.Begun].Addr()
		want := outcome{}
		for p, addrs := range f.addresses {
			if addrs == [2]netip.Addr{from, to} {
				want = f.at(p, flow.Epoch)
			}
		}
		entries, packets = entries+1, packets+flow.Packets[0]+flow.Packets[1]
		if !want.forwarded || want.rule != flow.Rule {
			t.Errorf("entry %+v; its epoch's state says %+v", flow, want)
		}
	}
	t.Logf("%d entries left, of %d packets", entries, packets)
}
