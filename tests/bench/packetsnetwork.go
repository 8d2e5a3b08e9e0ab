package main

import (
	"errors"
	"fmt"

	"github.com/weirnet/weir/tests/testnode"
)

// network are packets of the outside at the hooks of uplinks and of a pod's door.
func (n *node) network(family, repeat int) []*shot {
	tcp := testnode.TCP
	own := address(1, family)
	outside := func(i int) string {
		return fmt.Sprintf(map[int]string{4: "203.0.113.%d", 6: "2001:db8:1::%d"}[family], i)
	}
	node := map[int]string{4: "192.0.2.1", 6: "2001:db8::1"}[family]
	at := func(hook, name string, f testnode.Frame, want int) *shot {
		s := n.shot(name, f, 1, repeat, want)
		if s.program = n.stubs[hook]; hook != toPod {
			s.ifindex = n.uplink
		}
		if hook == toNetwork {
			s.mark = 1 // pod 1 sent it
		}
		return s
	}
	in := func(i int, flags string) testnode.Frame { return tcp(outside(i), 1000, own, 80, flags) }
	out := func(i int, flags string) testnode.Frame { return tcp(node, 1000, outside(i), 80, flags) }
	return []*shot{
		open(at(toPod, toPodRow, in(1, "A"), pass), at(toPod, "SYN", in(1, "S"), pass)),
		fresh(at(toPod, toPodFirstRow, in(2, "S"), pass)),
		open(at(fromNetwork, fromNetworkRow, in(3, "A"), pass), at(toPod, "SYN", in(3, "S"), pass)),
		at(fromNetwork, fromNetworkSlowRow, in(4, "S"), pass),
		open(at(toNetwork, toNetworkRow, out(5, "A"), pass), at(toNetwork, "SYN", out(5, "S"), pass)),
		fresh(at(toNetwork, toNetworkFirstRow, out(6, "S"), pass)),
	}
}

// nodes are packets to and from pods of other nodes, past the stack.
func (n *node) nodes(family, repeat int) ([]*shot, error) {
	own := address(1, family)
	out := func(name string, node uint64) *shot {
		packet := func(flags string) testnode.Frame { return testnode.TCP(own, 1000, far(node, family), 80, flags) }
		return open(n.shot(name, packet("A"), 1, repeat, redirect), n.shot("SYN to another node", packet("S"), 1, 1, redirect))
	}
	var failed error
	in := func(name string, node uint64, flags string) *shot {
		s := n.shot(name, testnode.TCP(far(node, family), 1000, own, 80, flags), 1, repeat, redirect)
		if s.program, s.ifindex = n.stubs[fromNetwork], n.uplink; node == tunnelNode {
			s.program, s.ifindex, s.outer = n.stubs[fromTunnel], n.tunnel, otherAddress(node, family)
		}
		to, err := hardware(s.ifindex)
		if err == nil {
			s.bytes, err = s.frame.Serialize()
		}
		if failed = errors.Join(failed, err); err == nil {
			copy(s.bytes, to)
		}
		return s
	}
	return []*shot{
		out(wayRow, otherNode),
		open(in(farRow, otherNode, "A"), in("SYN from another node", otherNode, "S")),
		fresh(in(farFirstRow, otherNode, "S")),
		out(wayTunnelRow, tunnelNode),
		open(in(farTunnelRow, tunnelNode, "A"), in("SYN by the tunnel", tunnelNode, "S")),
	}, failed
}
