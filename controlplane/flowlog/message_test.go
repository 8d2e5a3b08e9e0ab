package flowlog

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/controlplane/flowlog/format"
	"github.com/weirnet/weir/datapath"
	"github.com/weirnet/weir/identity"
)

var update = flag.Bool("update", false, "rewrite the goldens")

func with(e datapath.Event, change func(*datapath.Event)) datapath.Event {
	change(&e)
	return e
}

// Each kind of event, as a message, a line and a block.
func TestMessages(t *testing.T) {
	for name, e := range map[string]datapath.Event{
		"new":    began(),
		"denied": refused(),
		"denied-egress-unmanaged": with(refused(), func(e *datapath.Event) {
			e.Direction, e.Rule, e.Reason = datapath.Egress, [2]uint32{304, 0}, datapath.ReasonUnmanagedPeer
			e.Destination, e.Endpoint[1], e.Identity[1] = netip.MustParseAddrPort("10.0.9.9:443"), 0, identity.Unmanaged
		}),
		"denied-refused-policy": with(refused(), func(e *datapath.Event) { e.Rule[1] = 303 }),
		"spoofed": with(refused(), func(e *datapath.Event) {
			e.Reason, e.Direction, e.Rule, e.Protocol, e.TCPFlags = 5, datapath.None, [2]uint32{}, datapath.UDP, 0
			e.Source, e.Endpoint[1], e.Identity = netip.MustParseAddrPort("10.0.0.99:53"), 0, [2]identity.Number{}
		}),
		"ended": with(began(), func(e *datapath.Event) {
			e.Kind, e.Age, e.End, e.TCPFlags = datapath.EventEnded, 1234567*time.Microsecond, 1, 0x1b1a
			e.Packets, e.Bytes = [2]uint64{12, 10}, [2]uint64{3456, 1234567}
			e.Rule[0] = 302
		}),
		"revoked": with(began(), func(e *datapath.Event) {
			e.Kind, e.Age, e.End, e.Epoch = datapath.EventRevoked, 75*time.Second, 4, 13
			e.Dropped, e.Reason, e.Direction, e.Rule[1] = true, datapath.ReasonPolicy, datapath.Ingress, 301
		}),
		"ended-revoked": with(began(), func(e *datapath.Event) {
			e.Kind, e.Age, e.End, e.Rule[1] = datapath.EventEnded, 2*time.Minute, 4, 301
		}),
		"from-node-icmp6": with(began(), func(e *datapath.Event) {
			e.Source, e.Destination = netip.MustParseAddrPort("[fd00::a]:77"), netip.MustParseAddrPort("[fd00::3]:77")
			e.Protocol, e.ICMPType, e.TCPFlags, e.Path = 58, 128, 0, 0
			e.Endpoint[0], e.Identity[0], e.Rule = 0, identity.Host, [2]uint32{0, datapath.RuleNode}
		}),
		"picked-up-from-world": with(began(), func(e *datapath.Event) {
			e.Source, e.Endpoint[0], e.Identity[0] = netip.MustParseAddrPort("203.0.113.9:5000"), 0, identity.World
			e.Rule[0], e.PickedUp, e.TCPFlags = 0, true, 0x10
		}),
		"sctp-to-other-node": with(began(), func(e *datapath.Event) {
			e.Destination, e.Endpoint[1], e.Identity[1] = netip.MustParseAddrPort("10.0.1.7:132"), 0, 1003
			e.Protocol, e.TCPFlags, e.Rule = datapath.SCTP, 0, [2]uint32{302, 0}
		}),
		"kernel": with(refused(), func(e *datapath.Event) {
			e.Reason, e.KernelReason, e.Direction, e.Rule = datapath.ReasonKernel, "NO_SOCKET", datapath.None, [2]uint32{}
			e.Protocol, e.TCPFlags, e.Judged = datapath.UDP, 0, 0
		}),
		"rule-forgotten": with(refused(), func(e *datapath.Event) { e.Rule[1] = 999 }),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(shop(), 0)
			l.add(e)
			golden(t, name, rendered(t, l))
		})
	}
}

func TestSuppressedMessage(t *testing.T) {
	l := newLog(shop(), 0)
	counts := []datapath.DenialCount{{Endpoint: 1, Rule: 301, Direction: datapath.Ingress, Reason: datapath.ReasonPolicy}}
	l.opts.Denials = func() ([]datapath.DenialCount, error) { return counts, nil }
	l.countDenials()
	l.add(refused())
	counts[0].Packets = 43
	l.countDenials()
	l.countDenials()
	l.countDenials()
	kept, _ := l.ring.all()
	if len(kept) != 2 || kept[1].suppressed != 42 {
		t.Fatalf("%d records, want one denial and one that stands for 42", len(kept))
	}
	l.ring = newRing(1)
	l.ring.add(kept[1])
	golden(t, "suppressed", rendered(t, l))
}

// rendered is the log's one record in all its forms; its message must survive the way
// to a client whole.
func rendered(t *testing.T, l *Log) []byte {
	t.Helper()
	kept, _ := l.ring.all()
	if len(kept) != 1 {
		t.Fatalf("%d records, want 1", len(kept))
	}
	m := l.response(kept[0])
	var line, out bytes.Buffer
	must(t, AppendLine(&line, m))
	back, err := format.Parse(line.Bytes())
	must(t, err)
	if !proto.Equal(m, back) {
		t.Errorf("came back as %v\nsent %v", back, m)
	}
	x, sent := format.Extension(back.GetFlow()), extensionOf(kept[0])
	a, _ := json.Marshal(x)
	b, _ := json.Marshal(sent)
	if !bytes.Equal(a, b) || x.Kind == "" {
		t.Errorf("extension came back as %s\nsent %s", a, b)
	}
	style := format.Style{Zone: time.UTC}
	out.WriteString(format.Compact(back, style) + "\n\n" + format.Dict(back, style) + "\n\n")
	must(t, json.Indent(&out, line.Bytes(), "", "  "))
	return out.Bytes()
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		must(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant (%s, -update rewrites it)\n%s", got, path, want)
	}
}

func TestEveryReasonHasHubbles(t *testing.T) {
	for r := datapath.ReasonPolicy; r < datapath.Reasons; r++ {
		if dropReason(&datapath.Event{Reason: r}) == 0 {
			t.Errorf("no Hubble reason for %q", r)
		}
	}
	if len(dropReasons) != int(datapath.Reasons)-2 {
		t.Errorf("%d Hubble reasons for %d of ours", len(dropReasons), datapath.Reasons-2)
	}
}

// Names are those of the time of the event: an address or a number that has a new owner
// does not rewrite the past, and an endpoint that is gone keeps its name for its last events.
func TestNamesAreOfTheirTime(t *testing.T) {
	n := shop()
	l := newLog(n, 0)
	l.add(began())
	n.endpoints[1] = &Party{Namespace: "other", Name: "newcomer"}
	delete(n.endpoints, 2)
	l.add(began())
	kept, _ := l.ring.all()
	if got := kept[0].parties[0].Name; got != "web-1" {
		t.Errorf("first record's source is %s", got)
	}
	if got := kept[1].parties[0].Name; got != "newcomer" {
		t.Errorf("second record's source is %s", got)
	}
	if p := kept[1].parties[1]; p == nil || p.Name != "db-0" {
		t.Errorf("the endpoint that is gone is %v", p)
	}
}

func TestUUIDs(t *testing.T) {
	l := newLog(shop(), 0)
	l.add(began())
	l.add(began())
	kept, _ := l.ring.all()
	a, again, b := l.flow(kept[0]).Uuid, l.flow(kept[0]).Uuid, l.flow(kept[1]).Uuid
	if a != again || a == b || len(a) != 36 {
		t.Errorf("uuids %s, %s, %s", a, again, b)
	}
}

// A pod is named with the Service that led to it; a number that nobody knows any more names none.
func TestMessageNamesTheServiceAskedFor(t *testing.T) {
	for number, want := range map[uint16]string{0: "", 9: "shop/db", 10: ""} {
		l, e := newLog(shop(), 0), began()
		e.Service = number
		l.add(e)
		records, _ := l.ring.all()
		got := ""
		if s := l.response(records[0]).GetFlow().GetDestinationService(); s != nil {
			got = s.GetNamespace() + "/" + s.GetName()
		}
		if got != want {
			t.Errorf("number %d: %q, want %q", number, got, want)
		}
	}
}
