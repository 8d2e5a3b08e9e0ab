package packet

import (
	"net/netip"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/datapath/loader"
	"github.com/weirnet/weir/tests/testnode"
)

// A connection whose entry is gone, by a reset that its ends did not believe or for being
// idle, and whose server speaks first: it is nobody's own flow, and stops when the policy
// that let it begin does.
func TestConnectionWithoutEntryIsRevoked(t *testing.T) {
	for name, entry := range map[string]func(w *watch, syn testnode.Frame){
		"never": func(*watch, testnode.Frame) {},
		"reset": func(w *watch, syn testnode.Frame) {
			w.from(t, "SYN", w.a, flags(syn, "S"), redirected)
			w.from(t, "SYN+ACK", w.b, answer(syn, "SA"), redirected)
			w.from(t, "a reset of no effect", w.a, flags(syn, "R"), redirected)
			w.eventually("the entry is deleted", func() bool { return w.Kernel.FlowCount() == 0 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newSceneWith(t, fromAAny, loader.Config{Pickup: -1, Timeouts: loader.Timeouts{Closing: 200e6, Linger: 200e6}}).watch(t)
			f := begin(w.roads()[0], layers.IPProtocolTCP, 1000, 0)
			entry(w, f)
			w.from(t, "the server speaks", w.b, answer(f, "PA"), redirected)
			w.from(t, "it is answered", w.a, flags(f, "PA"), redirected)
			w.Set(w.c, closed, closed) // another's policy
			w.Commit(t)
			w.from(t, "undisturbed", w.b, answer(f, "PA"), redirected)
			w.Set(w.b, open, closed)
			w.Commit(t)
			w.from(t, "revoked, the client", w.a, flags(f, "PA"), policyDrop)
			w.from(t, "revoked, the server", w.b, answer(f, "PA"), policyDrop)
			w.Set(w.b, open, fromAAny)
			w.Commit(t)
			w.from(t, "allowed again", w.a, flags(f, "PA"), redirected)
			w.from(t, "both ways", w.b, answer(f, "PA"), redirected)
		})
	}
}

// And while it has none, the policy that let it begin goes: what its server may send to
// anybody is not sent on it.
func TestConnectionWithoutEntryIsForbidden(t *testing.T) {
	w := newSceneWith(t, closed, loader.Config{Pickup: -1}).watch(t)
	for _, fl := range []string{"A", "PA"} {
		w.from(t, fl, w.b, tcp(w.b.Addr4, 80, w.a.Addr4, 1000, fl), stray)
	}
	w.from(t, "a connection of its own", w.b, tcp(w.b.Addr4, 81, w.a.Addr4, 80, "S"), redirected)
}

// What new programs took for a flow of the server's is the client's, once its entry is taken over.
func TestTakenOverFlowIsItsBeginners(t *testing.T) {
	w := newScene(t, fromAAny).watch(t)
	n := w.Next(t, loader.Sizes{"flows": 2048})
	w.Commit(t)
	w.switchTo(t, n, 0, 0)
	w = w.scene.watch(t) // of the new maps
	f := begin(w.roads()[0], layers.IPProtocolTCP, 1000, 0)
	w.from(t, "the server speaks before its entry is there", w.b, answer(f, "PA"), redirected)
	was := *w.flow(f)
	if was.State&uint32(bpf.WeirFlowStateFLOW_TWO_WAY) == 0 || w.began(f) {
		t.Fatalf("begun as %+v, want b's, both ways", was)
	}
	was.State ^= uint32(bpf.WeirFlowStateFLOW_TWO_WAY | bpf.WeirFlowStateFLOW_INITIATOR)
	was.Created -= 1e9
	was.Stamp &= 0xff
	key, _ := testnode.FlowKey(netip.AddrPortFrom(mustAddr(f.Src), f.Sport), netip.AddrPortFrom(mustAddr(f.Dst), f.Dport), 6)
	packet := make([]byte, 14)
	packet = append(packet, unsafe.Slice((*byte)(unsafe.Pointer(&key)), unsafe.Sizeof(key))...)
	packet = append(packet, unsafe.Slice((*byte)(unsafe.Pointer(&was)), unsafe.Sizeof(was))...)
	if _, err := n.Programs[bpf.WeirProgImportFlow].Run(&ebpf.RunOptions{Data: packet}); err != nil {
		t.Fatal(err)
	}
	if flow := w.flow(f); !w.began(f) || flow.State&uint32(bpf.WeirFlowStateFLOW_TWO_WAY) != 0 || flow.Created != was.Created {
		t.Errorf("taken over as %+v", flow)
	}
	w.from(t, "the client", w.a, flags(f, "PA"), redirected)
	w.from(t, "the server", w.b, answer(f, "PA"), redirected)
	w.Set(w.b, open, closed)
	w.Commit(t)
	w.from(t, "revoked", w.b, answer(f, "PA"), policyDrop)
}
