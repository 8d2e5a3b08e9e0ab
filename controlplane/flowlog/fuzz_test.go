package flowlog

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
	"github.com/weirnet/weir/controlplane/policy"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

// eventOf is an event of any bytes, as a reader may hand it over.
func eventOf(b []byte) datapath.Event {
	b = append(bytes.Clone(b), make([]byte, 128)...)
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	e := datapath.Event{
		Kind: datapath.EventKind(b[0] % 6), Time: noon.Add(-time.Duration(b[1]) * time.Second), Created: uint64(u32(2)), Age: time.Duration(u32(6)),
		Protocol: b[10], Ifindex: u32(11), Endpoint: [2]uint32{uint32(b[15] % 4), uint32(b[16] % 4)},
		Identity: [2]identity.Number{identity.Number(u32(17)), identity.Number(b[21] % 8)}, Rule: [2]uint32{uint32(b[22] % 6), 299 + uint32(b[23]%6)},
		Dropped: b[24]&1 == 1, Reason: datapath.Reason(b[25]), Direction: datapath.Direction(b[26] % 3), Judged: b[27], Path: b[28], End: b[29],
		ICMPType: b[30], ICMPCode: b[31], PickedUp: b[24]&2 == 2, TCPFlags: binary.LittleEndian.Uint16(b[32:]),
		Packets: [2]uint64{uint64(u32(34)), uint64(u32(38))}, Bytes: [2]uint64{uint64(u32(42)) << 32, uint64(u32(46))},
	}
	source, dest := netip.AddrFrom16([16]byte(b[50:])), netip.AddrFrom16([16]byte(b[66:]))
	if b[24]&4 == 4 {
		source, dest = netip.AddrFrom4([4]byte(b[50:])), netip.AddrFrom4([4]byte(b[66:]))
	}
	e.Source = netip.AddrPortFrom(source, binary.LittleEndian.Uint16(b[82:]))
	e.Destination = netip.AddrPortFrom(dest, binary.LittleEndian.Uint16(b[84:]))
	return e
}

// callAll gives everything that has a name the one given.
func callAll(name string) *names {
	n := shop()
	by := []policy.Ref{{Kind: name, Namespace: name, Name: name}}
	for id := range uint32(4) {
		n.endpoints[id] = &Party{Namespace: name, Name: name, Labels: []string{name, "namespace:" + name, name + "=" + name}}
		n.rules[300+id] = policy.Rule{ID: 300 + id, Kind: name, Namespace: name, Name: name, IsolatedBy: by}
	}
	return n
}

var eventSeeds = [][]byte{
	{1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 0, 0, 0, 1, 2, 0xe9, 3, 0, 0, 2, 3, 1, 4},
	{4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 17, 7, 0, 0, 0, 1, 0, 0xe9, 3, 0, 0, 2, 0, 2, 5, 1, 1},
	{2, 9, 0, 0, 0, 1, 0, 0, 0, 2, 132, 7, 0, 0, 0, 3, 3, 0, 0, 0, 0, 6, 3, 4, 2, 0, 0, 3, 1, 2},
	{3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 58, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 3, 1, 200, 200, 255, 255, 4, 135, 9},
}

// FuzzRecord: whatever the kernel says and whatever things are called, a record is one line
// of the API that reads the same, and is shown without a character that a terminal acts on.
func FuzzRecord(f *testing.F) {
	for _, b := range eventSeeds {
		for _, name := range []string{"shop", "\x1b[2J\n", "\u202e\u0000\xff", "a=b,c:d/e"} {
			f.Add(b, name)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		l := newLog(callAll(strings.ToValidUTF8(name, "?")), 4)
		l.add(eventOf(b))
		var got collector
		must(t, l.Query(t.Context(), api.FlowQuery{}, &got))
		if len(got.got) != 1 {
			t.Fatalf("%d records of one event", len(got.got))
		}
		m := got.got[0]
		var line bytes.Buffer
		must(t, AppendLine(&line, m))
		if n := bytes.Count(line.Bytes(), []byte("\n")); n != 1 {
			t.Errorf("%d lines: %q", n, line.String())
		}
		again, err := format.Parse(line.Bytes())
		if err != nil || !proto.Equal(m, again) {
			t.Errorf("%s reads as %v, %v", line.String(), again, err)
		}
		holdPrintable(t, format.Compact(m, format.Style{Zone: time.UTC}))
		for part := range strings.SplitSeq(format.Dict(m, format.Style{Zone: time.UTC}), "\n") {
			holdPrintable(t, part)
		}
		holdPrintable(t, strings.TrimSuffix(string(format.SafeJSON(line.Bytes())), "\n"))
	})
}

func holdPrintable(t *testing.T, line string) {
	t.Helper()
	for _, r := range line {
		if !unicode.IsPrint(r) {
			t.Errorf("%q in the line %q", r, line)
		}
	}
}

// FuzzFilter: a query's fields must all match and each value of a field is enough, for any
// query and event: so a query matches what its parts match, taken together.
func FuzzFilter(f *testing.F) {
	for i, query := range []string{
		"verdict=dropped&verdict=forwarded&kind=new", "pod=shop/web-1&pod=shop/", "address=10.0.0.0/8&address=::/0&port=80",
		"namespace=shop&label=app%3Dweb&label=reserved:world&workload=StatefulSet/db&identity=1002", "policy=shop/db&protocol=icmp&protocol=6&direction=ingress", "reason=policy&reason=spoofed-source&last=3&since=5m&until=1m", "from-pod=shop/web-1&to-port=6379&not-to-namespace=shop&not-verdict=dropped&not-kind=new", "process=nginx&from-process=7&service=shop/db&to-service=shop/",
	} {
		f.Add(query, eventSeeds[i%len(eventSeeds)])
	}
	f.Fuzz(func(t *testing.T, query string, b []byte) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := api.ParseFlowQuery(v)
		if err != nil {
			return
		}
		if _, err := newLog(shop(), 1).QueryFilter(q); err != nil {
			return // a selector that is none
		}
		r := newNamer(shop()).record(eventOf(b))
		want := true
		for name, values := range q.Values() {
			if name == "since" || name == "until" {
				continue // their order is not a matter of each
			}
			any, all := false, true
			for _, value := range values {
				one, err := api.ParseFlowQuery(url.Values{name: {value}})
				must(t, err)
				is := matches(t, one, r)
				any, all = any || is, all && is
			}
			want = want && (any || strings.HasPrefix(name, api.Not)) && (all || !strings.HasPrefix(name, api.Not))
		}
		if got := matches(t, q, r); got != want {
			t.Errorf("%q: %v, its parts together %v, on %+v", query, got, want, r.event)
		}
		if !matches(t, api.FlowQuery{}, r) {
			t.Errorf("a query of nothing leaves out %+v", r.event)
		}
	})
}

func matches(t *testing.T, q api.FlowQuery, r *record) bool {
	t.Helper()
	f, err := newLog(shop(), 1).QueryFilter(q)
	must(t, err)
	return f.match(r)
}
