package agent

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/weirnet/weir/controlplane/source"
	"github.com/weirnet/weir/datapath"
)

func nodeOf(name string, addrs []string, ranges ...string) source.Node {
	n := source.Node{Name: name}
	for _, a := range addrs {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	for _, r := range ranges {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(r))
	}
	return n
}

func TestOriginsAreTheOtherNodes(t *testing.T) {
	own := nodeOf("one", []string{"192.0.2.1", "2001:db8::1"}, "10.0.1.0/24")
	nodes := &source.Nodes{Own: &own, Others: []source.Node{
		nodeOf("three", []string{"192.0.2.3", "192.0.2.1"}, "10.0.3.0/24"),                              // it claims this node's address
		nodeOf("two", []string{"192.0.2.2", "2001:db8::2", "192.0.2.3"}, "10.0.2.0/24", "fd00:2::1/64"), // and node three's
		nodeOf("without", []string{"fe80::4", "127.0.0.1", "0.0.0.0"}),                                  // addresses that say nothing
	}}
	// Node aaa is younger than three.
	aaa := nodeOf("aaa", []string{"192.0.2.9", "192.0.2.3"}, "10.0.9.0/24")
	aaa.Borrowed = []source.Borrowed{{Address: netip.MustParseAddr("192.0.2.3"), Node: "three"}}
	nodes.Others = append([]source.Node{aaa}, nodes.Others...)
	two, three := nodeNumber("two"), nodeNumber("three")
	if two == three || two == 0 || three == 0 {
		t.Errorf("numbers %d and %d", two, three)
	}
	want := map[netip.Prefix]datapath.Origin{}
	for text, o := range map[string]datapath.Origin{
		"192.0.2.9/32": {Node: nodeNumber("aaa"), Address: true}, "10.0.9.0/24": {Node: nodeNumber("aaa")},
		"192.0.2.3/32": {Node: three, Address: true}, "10.0.3.0/24": {Node: three},
		"192.0.2.2/32": {Node: two, Address: true}, "2001:db8::2/128": {Node: two, Address: true}, "10.0.2.0/24": {Node: two}, "fd00:2::/64": {Node: two},
	} {
		want[netip.MustParsePrefix(text)] = o
	}
	if got := origins(nodes); !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := origins(nil); len(got) != 0 {
		t.Errorf("of no nodes: %v", got)
	}
}
