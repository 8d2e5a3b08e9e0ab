// Package shield is pure: the list of addresses that the shield drops at the uplinks, and what
// may not be in it, because the node would cut itself off.
package shield

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Entry is one of the list.
type Entry struct {
	Line   int
	Prefix netip.Prefix
}

// Refused is a line that is not enforced.
type Refused struct {
	Line   int
	Reason string
}

// Parse reads a list: a line an address or prefix, # begins a comment. What a line repeats is left out.
func Parse(text []byte) (list []Entry, refused []Refused) {
	seen := map[netip.Prefix]bool{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for n := 1; lines.Scan(); n++ {
		word, _, _ := strings.Cut(lines.Text(), "#")
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		p, err := parse(word)
		switch {
		case err != nil:
			refused = append(refused, Refused{n, err.Error()})
		case !seen[p]:
			seen[p] = true
			list = append(list, Entry{n, p})
		}
	}
	return list, refused
}

func parse(word string) (netip.Prefix, error) {
	quoted := word
	if len(quoted) > 60 {
		quoted = quoted[:60] + "..."
	}
	p, err := netip.ParsePrefix(word)
	if err != nil {
		a, addrErr := netip.ParseAddr(word)
		if addrErr != nil || a.Zone() != "" {
			return p, fmt.Errorf("%q is neither an address nor a prefix: write one a line, such as 198.51.100.7 or 2001:db8::/32", quoted)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		return p, fmt.Errorf("%s: write it as IPv4", p)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s has bits set behind its length: write %s if that is meant", p, p.Masked())
	}
	return p, nil
}

// Kept are the addresses that packets have to get in from, and whose they are.
type Kept struct {
	whose   map[netip.Prefix]string
	lengths [2][]int // that there are, by family, longest first
	sorted  []netip.Prefix
}

// always are those of every node. Link-local ones are neighbours', :: is one that looks for its own.
var always = map[string]string{
	"127.0.0.0/8": "loopback", "::1/128": "loopback", "224.0.0.0/4": "multicast, no packet's source", "ff00::/8": "multicast, no packet's source",
	"255.255.255.255/32": "broadcast, no packet's source", "0.0.0.0/32": "what has no address yet", "::/128": "what has no address yet",
	"169.254.0.0/16": "the link's own (neighbours, the cloud's metadata)", "fe80::/10": "the link's own (neighbour discovery)",
}

// Keep makes Kept of these and of what every node keeps.
func Keep(whose map[netip.Prefix]string) *Kept {
	k := &Kept{whose: make(map[netip.Prefix]string, len(whose)+len(always))}
	for p, what := range whose {
		if p.IsValid() {
			k.whose[p.Masked()] = what
		}
	}
	for text, what := range always {
		k.whose[netip.MustParsePrefix(text)] = what
	}
	for p := range k.whose {
		f := family(p.Addr())
		if !slices.Contains(k.lengths[f], p.Bits()) {
			k.lengths[f] = append(k.lengths[f], p.Bits())
		}
		k.sorted = append(k.sorted, p)
	}
	for _, l := range k.lengths {
		slices.SortFunc(l, func(x, y int) int { return y - x })
	}
	slices.SortFunc(k.sorted, compare)
	return k
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func compare(x, y netip.Prefix) int { return cmp.Or(x.Addr().Compare(y.Addr()), x.Bits()-y.Bits()) }

// Refuse says why a prefix may not be in the list; "" = it may.
func (k *Kept) Refuse(p netip.Prefix) string {
	for _, bits := range k.lengths[family(p.Addr())] {
		if bits > p.Bits() {
			continue
		}
		over, _ := p.Addr().Prefix(bits)
		if what, ok := k.whose[over]; ok {
			return fmt.Sprintf("%s is %s: dropping it would cut this node off", text(p), of(over, what, p))
		}
	}
	i, _ := slices.BinarySearchFunc(k.sorted, p, compare)
	if i < len(k.sorted) && p.Contains(k.sorted[i].Addr()) {
		in := k.sorted[i]
		return fmt.Sprintf("%s is too wide: it has %s in it, %s; list what lies around it", p, text(in), k.whose[in])
	}
	return ""
}

// of names what is over a prefix, if that is more than itself.
func of(over netip.Prefix, what string, p netip.Prefix) string {
	if over == p {
		return what
	}
	return fmt.Sprintf("in %s, %s", text(over), what)
}

func text(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
