package identity

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRequirements(t *testing.T) {
	none, a, empty := map[string]string{}, map[string]string{"k": "a"}, map[string]string{"k": ""}
	for _, test := range []struct {
		r            Requirement
		none, a, mty bool
	}{
		{Requirement{"k", In, []string{"a", "b"}}, false, true, false},
		{Requirement{"k", In, []string{""}}, false, false, true},
		{Requirement{"k", NotIn, []string{"a", "b"}}, true, false, true},
		{Requirement{"k", NotIn, []string{""}}, true, true, false},
		{Requirement{"k", Exists, nil}, false, true, true},
		{Requirement{"k", NotExists, nil}, true, false, false},
		{Requirement{"k", "like", []string{"a"}}, false, false, false},
	} {
		s := NewSelector(test.r)
		if s.Matches(none) != test.none || s.Matches(a) != test.a || s.Matches(empty) != test.mty {
			t.Errorf("%s: none %v, a %v, empty %v", s, s.Matches(none), s.Matches(a), s.Matches(empty))
		}
	}
	if !NewSelector().Matches(none) || !NewSelector().Empty() {
		t.Error("the empty selector does not match all")
	}
}

func TestSelectorTextIsCanonical(t *testing.T) {
	one := NewSelector(Requirement{"b", Exists, nil}, Requirement{"a", In, []string{"y", "x", "y"}}, Requirement{"b", Exists, nil})
	two := NewSelector(Requirement{"a", In, []string{"x", "y"}}, Requirement{"b", Exists, nil})
	if one.String() != two.String() || one.String() != "a in (x y),b exists" {
		t.Errorf("%q and %q", one, two)
	}
}

func TestLabelsText(t *testing.T) {
	l := Labels{Namespace: "shop", NamespaceLabels: map[string]string{"team": "a"}, PodLabels: map[string]string{"z": "1", "app": ""},
		Ports: []NamedPort{{"http", 6, 80}, {"quic", 17, 443}}}
	if got := l.String(); got != "shop,app=,namespace:team=a,port:http=80/TCP,port:quic=443/UDP,z=1" {
		t.Errorf("%q", got)
	}
	if n := Preferred(l.String()); !n.IsPod() {
		t.Errorf("%d is no pod's number", n)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestPeerSetOrder(t *testing.T) {
	web := InNamespace("x", NewSelector(Requirement{"app", In, []string{"web"}}))
	block := InBlock(prefix("10.0.0.0/8"), prefix("10.1.0.0/16"))
	all := InNamespaces(NewSelector(), NewSelector())
	for _, test := range []struct {
		peers []Peer
		want  string
	}{
		{[]Peer{web, block, web}, "block 10.0.0.0/8 except 10.1.0.0/16\nnamespace x pods app in (web)"},
		{[]Peer{block, web, all}, "all pods\nblock 10.0.0.0/8 except 10.1.0.0/16"},
		{[]Peer{block, all, Any()}, "any"},
	} {
		if got := NewPeerSet(test.peers).Text(); got != test.want {
			t.Errorf("%v is %q, want %q", test.peers, got, test.want)
		}
	}
}

// The identity of an address in a set is that of the longest policy CIDR over it: for
// every address, asking the CIDR must be asking the peer.
func TestBlocksAreExactByLongestCIDR(t *testing.T) {
	set := NewPeerSet([]Peer{
		InBlock(prefix("10.0.0.0/24"), prefix("10.0.0.64/26"), prefix("10.0.0.3/32")),
		InBlock(prefix("10.0.0.64/27"), prefix("10.0.0.70/31")),
		InBlock(prefix("0.0.0.0/0"), prefix("10.0.0.0/16")),
		InBlock(prefix("::/0")),
	})
	cidrs := map[netip.Prefix]struct{}{}
	set.CIDRs(cidrs)
	table := NewBlocks(cidrs)
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.9.9")}
	for i := range 256 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	for _, a := range addrs {
		cidr, _, ok := table.Longest(Single(a))
		got, in := uint32(0), false
		if ok {
			got, in = set.OfBlock(cidr)
		}
		want, wantIn := set.first(func(p Peer) bool {
			for _, e := range p.Except {
				if e.Contains(a) {
					return false
				}
			}
			return p.Block.Contains(a)
		})
		if in != wantIn || got != want {
			t.Errorf("%s by %s: %d %v, want %d %v", a, cidr, got, in, want, wantIn)
		}
	}
}

func TestMappedPrefixesAreIPv4(t *testing.T) {
	if p := Masked(prefix("::ffff:10.1.2.3/104")); p != prefix("10.0.0.0/8") {
		t.Errorf("%s", p)
	}
	p := InBlock(prefix("::/0"))
	if _, in := NewPeerSet([]Peer{p}).OfBlock(prefix("0.0.0.0/0")); in || strings.Contains(p.String(), "except") {
		t.Errorf("%s has IPv4 in it", p)
	}
}
