package packet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/datapath/parked"
	"github.com/weirnet/weir/tests/testnode"
)

// wire is a node whose stack forwards nothing, unless a test says so: what gets through goes by the
// way to node two, which is played by what lies beyond the uplink.
type wire struct {
	*tunnelScene
	tunnel bool
	far    netip.Addr // the tunnel's far end
	device int
	tables *testnode.Tables
	frames chan []byte // what leaves by the uplink
}

func newWire(t *testing.T, tunnel bool, far string) *wire {
	cfg := loader.Config{Pickup: -1}
	if tunnel {
		cfg.TunnelPort = tunnelPort
	}
	w := &wire{tunnelScene: newWireScene(t, cfg), tunnel: tunnel, far: mustAddr(far), frames: make(chan []byte, 256)}
	w.forward(false)
	w.trust()
	w.device = w.network.Uplink
	if tunnel {
		w.must(w.Do(func() error {
			link, err := netlink.LinkByName(datapath.TunnelDevice)
			if err == nil {
				w.device = link.Attrs().Index
			}
			return err
		}))
	}
	var err error
	w.tables, err = w.Tables()
	w.must(err)
	t.Cleanup(func() { w.tables.Close() })
	w.ways()
	w.back()
	w.capture()
	return w
}

// forward turns the stack's forwarding on or off.
func (w *wire) forward(on bool) {
	w.Helper()
	value := []byte("0")
	if on {
		value = []byte("1")
	}
	w.must(w.Do(func() error {
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+file, value, 0); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (w *wire) ways() {
	w.State.Ways = map[datapath.WayKey]datapath.Way{}
	for _, v6 := range []bool{false, true} {
		way := datapath.Way{Ifindex: uint32(w.device), MTU: 1500, Addr: map[bool]netip.Addr{false: mustAddr("192.0.2.2"), true: mustAddr("2001:db8::2")}[v6]}
		if w.tunnel {
			way.Addr, way.Tunnel, way.MTU = w.far, true, 1430
		}
		w.State.Ways[datapath.WayKey{Node: 2, V6: v6}] = way
	}
	w.Commit(w.T)
	w.must(w.Kernel.Settle())
}

// back has the network know the way to this node's pods.
func (w *wire) back() {
	w.must(w.network.Do(func() error {
		for to, via := range map[string]string{"10.0.1.0/24": "192.0.2.1", "fd00:1::/64": "2001:db8::1"} {
			_, dst, _ := net.ParseCIDR(to)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: mustAddr(via).AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// capture takes what leaves by the uplink.
func (w *wire) capture() {
	w.Helper()
	fd := -1
	w.must(w.network.Do(func() (err error) {
		all := uint16(unix.ETH_P_ALL)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all<<8|all>>8))
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: link.Attrs().Index})
	}))
	w.must(unix.SetNonblock(fd, true)) // so that Close ends Read
	f := os.NewFile(uintptr(fd), "capture")
	w.Cleanup(func() { f.Close() })
	go func() {
		for {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if err != nil {
				return
			}
			w.frames <- b[:n]
		}
	}()
}

// leaves waits for a frame that ends with text.
func (w *wire) leaves(text string) []byte {
	w.Helper()
	deadline := time.After(5 * time.Second)
	for {
		select {
		case f := <-w.frames:
			if strings.HasSuffix(string(f), text) {
				return f
			}
		case <-deadline:
			w.Fatalf("nothing with %q leaves", text)
		}
	}
}

func (w *wire) say(text, to string, port int) {
	w.Helper()
	w.must(<-w.pod.Thread(func() error {
		conn, err := net.DialUDP("udp", &net.UDPAddr{Port: podPort + 1}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(mustAddr(to), uint16(port))))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte(text))
		return err
	}))
}

// shape is all of a packet that the way may not change, from outer to inner. hops: they are not the stack's to count.
func shape(frame []byte, first gopacket.LayerType, hops bool) string {
	var out []string
	for _, l := range gopacket.NewPacket(frame, first, gopacket.Default).Layers() {
		ttl := ""
		switch l := l.(type) {
		case *layers.IPv4:
			if hops {
				ttl = fmt.Sprint(" ttl ", l.TTL)
			}
			out = append(out, fmt.Sprintf("IPv4 %s > %s tos %#x flags %v%s length %d", l.SrcIP, l.DstIP, l.TOS, l.Flags, ttl, l.Length))
		case *layers.IPv6:
			if hops {
				ttl = fmt.Sprint(" ttl ", l.HopLimit)
			}
			out = append(out, fmt.Sprintf("IPv6 %s > %s class %#x%s length %d", l.SrcIP, l.DstIP, l.TrafficClass, ttl, l.Length))
		case *layers.UDP:
			if l.DstPort == tunnelPort { // its source is chosen by what is in it
				out = append(out, fmt.Sprintf("tunnel's UDP, checksum %v", l.Checksum != 0), shape(l.Payload, layers.LayerTypeVXLAN, false))
				continue
			}
			out = append(out, fmt.Sprintf("UDP %d, checksum %v", l.SrcPort, l.Checksum != 0))
		case *layers.VXLAN:
			out = append(out, fmt.Sprintf("VXLAN %#x %v", l.VNI, l.ValidIDFlag))
		}
	}
	return strings.Join(out, "\n")
}

func eachWire(t *testing.T, f func(t *testing.T, w *wire)) {
	for _, c := range []struct {
		name, far string
		tunnel    bool
	}{{"native", "192.0.2.2", false}, {"tunnel", "192.0.2.2", true}, {"tunnel over IPv6", "2001:db8::2", true}} {
		t.Run(c.name, func(t *testing.T) { f(t, newWire(t, c.tunnel, c.far)) })
	}
}

// What leaves by the way is what the stack would send, but for the hop that it counts.
func TestWayAsTheStackHasIt(t *testing.T) {
	eachWire(t, func(t *testing.T, w *wire) {
		for i, to := range []string{"10.0.2.9", "fd00:2::9"} {
			byWay := fmt.Sprintf("past the stack to %s", to)
			w.say(byWay, to, 6000+i)
			got := w.leaves(byWay)
			clear(w.State.Ways)
			if w.far.Is6() { // the routes are the agent's choice: one address of the node's
				w.nodes.Others[0].Addresses = []netip.Addr{w.far}
				w.must(w.Do(func() error { return w.routing.Route(w.nodes, nil) }))
			}
			if !w.tunnel {
				w.must(w.Do(func() error { return routeTo(to) }))
			}
			w.Commit(t)
			w.must(w.Kernel.Settle())
			w.forward(true)
			byStack := strings.Replace(byWay, "past", "with", 1)
			w.say(byStack, to, 6100+i)
			want := w.leaves(byStack)
			w.forward(false)
			w.ways()
			a, b := shape(got, layers.LayerTypeEthernet, w.tunnel), shape(want, layers.LayerTypeEthernet, w.tunnel)
			if a != b || !strings.Contains(a, fmt.Sprintf("UDP %d", podPort+1)) {
				t.Errorf("by the way\n%s\nby the stack\n%s", a, b)
			}
		}
	})
}

func routeTo(to string) error {
	via, length := "192.0.2.2", 24
	if mustAddr(to).Is6() {
		via, length = "2001:db8::2", 64
	}
	_, dst, _ := net.ParseCIDR(netip.PrefixFrom(mustAddr(to), length).Masked().String())
	return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: mustAddr(via).AsSlice()})
}

// deliver sends what a pod of node two says to this node's pod.
func (w *wire) deliver(from string, port uint16) {
	w.Helper()
	to := w.State.Endpoints[1].Addr4
	if mustAddr(from).Is6() {
		to = w.State.Endpoints[1].Addr6
	}
	if w.tunnel {
		w.must(w.send(sent{from: w.far.String(), vni: datapath.TunnelNetwork, inner: testnode.UDP(from, port, to.String(), podPort).Bytes(w)}))
		return
	}
	w.must(w.network.Do(func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(mustAddr(from), port)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, podPort)))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("ping"))
		return err
	}))
}

func (w *wire) hears(from string) {
	w.Helper()
	select {
	case got := <-w.heard:
		if got != "ping from "+from {
			w.Fatalf("the pod heard %q, want %q", got, "ping from "+from)
		}
	case <-time.After(5 * time.Second):
		w.Fatalf("the pod heard nothing from %s; drops %v", from, w.Drops(w.T))
	}
}

// Nothing of the stack's is needed for what comes by the way.
func TestWayIntoThePod(t *testing.T) {
	eachWire(t, func(t *testing.T, w *wire) {
		for _, from := range []string{"10.0.2.9", "fd00:2::9"} {
			for range 2 {
				w.deliver(from, 5000)
				w.hears(from)
			}
			w.path(from, 5000)
		}
		clear(w.State.Ways)
		w.Commit(t)
		w.must(w.Kernel.Settle())
		w.deliver("10.0.2.9", 5001)
		w.deliver("10.0.2.9", 5000)
		select {
		case got := <-w.heard:
			t.Errorf("without a way, by a stack that does not forward, the pod heard %q", got)
		case <-time.After(200 * time.Millisecond):
		}
	})
}

func (w *wire) path(from string, port uint16) {
	w.Helper()
	to := w.State.Endpoints[1].Addr4
	if mustAddr(from).Is6() {
		to = w.State.Endpoints[1].Addr6
	}
	key, _ := testnode.FlowKey(netip.AddrPortFrom(mustAddr(from), port), netip.AddrPortFrom(to, podPort), 17)
	var flow bpf.WeirFlow
	ok, err := w.tables.Flow(&key, &flow)
	w.must(err)
	if !ok || flow.State&uint32(bpf.WeirFlowStateFLOW_PATH_NODES) == 0 {
		w.Errorf("the flow from %s: there %v, state %#x", from, ok, flow.State)
	}
}

// A first packet of a pod that is not known yet is kept as the pod's hook would keep it; sent again it
// begins the flow that its answers, which the stack does not know either, need.
func TestParkedPastTheStack(t *testing.T) {
	eachWire(t, func(t *testing.T, w *wire) {
		w.State.Rulesets[fromAAny] = rulesets()[fromAAny]
		w.State.Facts[datapath.Fact{Set: setA, Identity: idTwo}] = 0
		ep := w.State.Endpoints[1]
		ep.Ingress = fromAAny
		w.State.Endpoints[1] = ep
		w.Commit(t)
		frames, err := parked.Open(w.Config.BPFFSDir, 0)
		w.must(err)
		t.Cleanup(func() { frames.Close(); frames.Release() })
		for _, from := range []string{"10.0.2.9", "fd00:2::9"} {
			for _, again := range []string{"judged", "remembered"} {
				w.deliver(from, 5000)
				f, err := frames.Read()
				w.must(err)
				if !f.Way || f.FromPod || int(f.Ifindex) != w.pod.Ifindex || f.Peer != mustAddr(from) {
					t.Fatalf("%s: parked %+v", again, f)
				}
				if again == "judged" {
					continue
				}
				a := mustAddr(from)
				w.State.Peers[netip.PrefixFrom(a, a.BitLen())] = datapath.Peer{Identity: idTwo}
				w.Commit(t)
				w.must(w.Do(func() error { return frames.Send(f) }))
				w.hears(from)
				w.path(from, 5000)
			}
			w.deliver(from, 5000)
			w.hears(from)
		}
		select {
		case got := <-w.heard:
			t.Errorf("the pod heard %q, too", got)
		default:
		}
	})
}
