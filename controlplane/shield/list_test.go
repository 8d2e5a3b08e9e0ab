package shield

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	list, refused := Parse([]byte(`# scanners
198.51.100.7
  203.0.113.0/24	# a whole network

2001:db8:bad::/48
198.51.100.7 # again
2001:DB8::1
host.example
203.0.113.9/24
10.0.0.0/33
::ffff:192.0.2.1
fe80::1%eth0
192.0.2.1 192.0.2.2
` + strings.Repeat("9", 1<<17) + "\n192.0.2.5"))
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprintf("%d %s", e.Line, e.Prefix))
	}
	want := []string{"2 198.51.100.7/32", "3 203.0.113.0/24", "5 2001:db8:bad::/48", "7 2001:db8::1/128", "15 192.0.2.5/32"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for i, w := range []string{
		`8 "host.example" is neither`, "9 203.0.113.9/24 has bits set behind its length: write 203.0.113.0/24", `10 "10.0.0.0/33" is neither`,
		"11 ::ffff:192.0.2.1/128: write it as IPv4", `12 "fe80::1%eth0" is neither`, `13 "192.0.2.1 192.0.2.2" is neither`, `14 "999`,
	} {
		if i >= len(refused) {
			t.Fatalf("refused %v, want %q", refused, w)
		}
		if r := fmt.Sprintf("%d %s", refused[i].Line, refused[i].Reason); !strings.HasPrefix(r, w) || len(r) > 300 {
			t.Errorf("refused %q, want %q", r, w)
		}
	}
	if len(refused) != 7 {
		t.Errorf("refused %v", refused)
	}
}

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func TestWhatCutsTheNodeOffIsRefused(t *testing.T) {
	k := Keep(map[netip.Prefix]string{
		prefix("192.0.2.1/32"): "an address of this node", prefix("192.0.2.2/32"): "an address of node two",
		prefix("10.244.0.0/16"): "pods' addresses", prefix("fd00:10::/48"): "pods' addresses", prefix("2001:db8::1/128"): "the API server's",
	})
	for text, want := range map[string]string{
		"192.0.2.1/32":       "192.0.2.1 is an address of this node: dropping it would cut this node off",
		"192.0.2.2/32":       "192.0.2.2 is an address of node two",
		"192.0.2.0/30":       "192.0.2.0/30 is too wide: it has 192.0.2.1 in it, an address of this node",
		"10.244.7.9/32":      "10.244.7.9 is in 10.244.0.0/16, pods' addresses",
		"10.244.0.0/16":      "10.244.0.0/16 is pods' addresses",
		"10.0.0.0/8":         "too wide: it has 10.244.0.0/16 in it",
		"fd00:10:0:1::5/128": "in fd00:10::/48, pods' addresses",
		"2001:db8::/32":      "too wide: it has 2001:db8::1 in it, the API server's",
		"2001:db8::1/128":    "2001:db8::1 is the API server's",
		"127.0.0.1/32":       "loopback",
		"0.0.0.0/0":          "too wide",
		"::/0":               "too wide",
		"::1/128":            "loopback",
		"224.0.0.5/32":       "multicast",
		"ff02::1/128":        "multicast",
		"255.255.255.255/32": "broadcast",
		"169.254.169.254/32": "the link's own",
		"fe80::1/128":        "the link's own",
		"192.0.2.3/32":       "",
		"192.0.2.128/25":     "",
		"10.243.0.0/16":      "",
		"2001:db8:bad::/48":  "",
		"2001:db8::2/128":    "",
		"198.51.100.0/24":    "",
	} {
		if got := k.Refuse(prefix(text)); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// The search agrees with asking every one.
func FuzzRefuse(f *testing.F) {
	whose := map[netip.Prefix]string{}
	for _, text := range []string{"192.0.2.1/32", "192.0.2.128/25", "10.0.0.0/9", "2001:db8::/33", "2001:db8:8000::1/128", "64:ff9b::/96"} {
		whose[prefix(text)] = "kept"
	}
	k := Keep(whose)
	f.Add([]byte{192, 0, 2, 1}, 24)
	f.Add([]byte{10, 128, 0, 0}, 8)
	f.Add(prefix("2001:db8::/32").Addr().AsSlice(), 31)
	f.Fuzz(func(t *testing.T, raw []byte, bits int) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok || addr.Is4In6() || bits < 0 || bits > addr.BitLen() {
			return
		}
		p, _ := addr.Prefix(bits)
		overlaps := false
		for o := range k.whose {
			overlaps = overlaps || o.Overlaps(p)
		}
		if got := k.Refuse(p); (got != "") != overlaps {
			t.Errorf("%s: refused %q, overlaps %v", p, got, overlaps)
		}
	})
}
