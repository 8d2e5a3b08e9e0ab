package identity

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// requirementsOf reads "key op value value" lines; what cannot be a requirement is left out.
func requirementsOf(text string) (ours []Requirement, theirs labels.Selector) {
	operators := map[string]selection.Operator{
		string(In): selection.In, string(NotIn): selection.NotIn, string(Exists): selection.Exists, string(NotExists): selection.DoesNotExist,
	}
	theirs = labels.NewSelector()
	for line := range strings.Lines(text) {
		words := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(words) < 2 {
			continue
		}
		r, err := labels.NewRequirement(words[0], operators[words[1]], words[2:])
		if err != nil {
			continue
		}
		ours = append(ours, Requirement{words[0], Operator(words[1]), words[2:]})
		theirs = theirs.Add(*r)
	}
	return ours, theirs
}

// A selector matches what Kubernetes' matches, whatever the order it was written in and
// however often it says a thing; and two have one text only if they have one meaning.
func FuzzSelector(f *testing.F) {
	for _, seed := range [][3]string{
		{"app in web db\ntier notin front\n", "app=web,tier=back", "app in db web db\n"},
		{"app exists\nteam !exists", "app=", "app !exists"},
		{"a in b\na in c", "a=b", "a notin b"},
		{"example.com/a in x.y-z_0 \na notin ", "example.com/a=,a=", "a in  b"},
		{"a in b", "", "a in b"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, text, labelText, other string) {
		set := map[string]string{}
		for pair := range strings.SplitSeq(labelText, ",") {
			if k, v, ok := strings.Cut(pair, "="); ok {
				set[k] = v
			}
		}
		ours, theirs := requirementsOf(text)
		s := NewSelector(ours...)
		if got, want := s.Matches(set), theirs.Matches(labels.Set(set)); got != want {
			t.Errorf("%q on %v: %v, Kubernetes %v", s, set, got, want)
		}
		twice := append(slices.Clone(ours), ours...)
		slices.Reverse(twice)
		if again := NewSelector(twice...); again.String() != s.String() {
			t.Errorf("%q backwards and twice is %q", s, again)
		}
		if s.Empty() != (len(ours) == 0) || s.Empty() != (s.String() == "*") {
			t.Errorf("%q of %d requirements is empty: %v", s, len(ours), s.Empty())
		}
		others, _ := requirementsOf(other)
		if o := NewSelector(others...); o.String() == s.String() && o.Matches(set) != s.Matches(set) {
			t.Errorf("%v and %v are both %q and differ on %v", ours, others, s, set)
		}
	})
}

// The identity of an address is its longest policy CIDR: asking a peer set about that must
// be asking its blocks about the address, for any blocks, exceptions and addresses.
func FuzzBlocks(f *testing.F) {
	for _, seed := range [][3]string{
		{"10.0.0.0/8-10.1.0.0/16-10.1.2.0/24 10.1.2.3/32", "10.1.2.3", "10.1.2.0/25"},
		{"0.0.0.0/0-10.0.0.0/8 ::/0-fd00::/8", "fd00::1", "fd00::/7"},
		{"::ffff:10.0.0.0/104 10.0.0.0/9", "::ffff:10.0.0.1", "10.0.0.0/8"},
		{"10.0.0.7/8 10.9.9.9/8", "11.0.0.0", "0.0.0.0/0"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, text, addrText, prefixText string) {
		set := NewPeerSet(blocksOf(text))
		cidrs := map[netip.Prefix]struct{}{}
		set.CIDRs(cidrs)
		for p := range cidrs {
			if p != Masked(p) || p.Addr().Is4In6() && p.Bits() >= 96 {
				t.Errorf("%s is no masked prefix", p)
			}
		}
		table := NewBlocks(cidrs)
		if a, err := netip.ParseAddr(addrText); err == nil {
			holdAddress(t, set, table, Single(a))
		}
		if p, err := netip.ParsePrefix(prefixText); err == nil {
			holdLongest(t, table, cidrs, Masked(p))
		}
	})
}

// blocksOf reads "block-except-except ..." words.
func blocksOf(text string) (peers []Peer) {
	for word := range strings.FieldsSeq(text) {
		var prefixes []netip.Prefix
		for part := range strings.SplitSeq(word, "-") {
			if p, err := netip.ParsePrefix(part); err == nil {
				prefixes = append(prefixes, p)
			}
		}
		if len(prefixes) > 0 {
			peers = append(peers, InBlock(prefixes[0], prefixes[1:]...))
		}
	}
	return peers
}

func holdAddress(t *testing.T, set PeerSet, table *Blocks[struct{}], a netip.Prefix) {
	t.Helper()
	want, wantIn := set.first(func(p Peer) bool {
		return p.Block.Contains(a.Addr()) && !slices.ContainsFunc(p.Except, func(e netip.Prefix) bool { return e.Contains(a.Addr()) })
	})
	got, in := uint32(0), false
	cidr, _, found := table.Longest(a)
	if found {
		got, in = set.OfBlock(cidr)
	}
	if in != wantIn || got != want {
		t.Errorf("%s by %s in %q: member %d %v, want %d %v", a, cidr, set.Text(), got, in, want, wantIn)
	}
}

// holdLongest asks every prefix.
func holdLongest(t *testing.T, table *Blocks[struct{}], cidrs map[netip.Prefix]struct{}, p netip.Prefix) {
	t.Helper()
	var want netip.Prefix
	for c := range cidrs {
		if covers(c, p) && (!want.IsValid() || c.Bits() > want.Bits()) {
			want = c
		}
	}
	if got, _, ok := table.Longest(p); got != want || ok != want.IsValid() {
		t.Errorf("longest over %s: %s, want %s", p, got, want)
	}
}

// covers reports whether outer contains all of inner; families never cover each other.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
