package flowlog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/datapath"
)

// fill gives the log five records; their source ports are 1 to 5, a minute apart.
func fill(l *Log) {
	for i, e := range []datapath.Event{
		began(),
		refused(),
		with(began(), func(e *datapath.Event) { e.Protocol = 1; e.ICMPType = 8; e.Rule = [2]uint32{302, 0} }),
		with(began(), func(e *datapath.Event) {
			e.Kind = datapath.EventEnded
			e.Process = &datapath.Process{PID: 76, Name: "curl", Cgroup: "/kubepods/pod1/cri-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope"}
			e.Listener = &datapath.Process{PID: 77, Name: "main", Executable: "/usr/bin/redis-server"}
		}),
		with(refused(), func(e *datapath.Event) {
			e.Reason, e.Direction, e.Rule, e.Endpoint = 5, datapath.None, [2]uint32{}, [2]uint32{1, 0}
			e.Destination = netip.MustParseAddrPort("[fd00::9]:443")
		}),
	} {
		e.Time = noon.Add(time.Duration(i-4) * time.Minute)
		e.Source = netip.AddrPortFrom(e.Source.Addr(), uint16(i+1))
		l.add(e)
	}
}

func TestQueries(t *testing.T) {
	l := newLog(shop(), 0)
	fill(l)
	for _, c := range []struct{ query, want string }{
		{"", "1 2 3 4 5"},
		{"last=2", "4 5"},
		{"since=121s", "3 4 5"},
		{"since=121s&last=1", "5"},
		{"since=1ms", ""},
		{"new=1&last=3", ""},
		{"verdict=dropped", "2 5"},
		{"verdict=FORWARDED&last=1", "4"},
		{"kind=ended&kind=denied", "2 4 5"},
		{"pod=shop/db-0", "1 2 3 4"},
		{"pod=shop/", "1 2 3 4 5"},
		{"pod=shop/db", ""},
		{"policy=shop/deny-all", "2"},
		{"policy=shop/db", "1 2 4"},
		{"policy=shop/web-out", "3"},
		{"protocol=icmp", "3"},
		{"protocol=tcp&port=6379", "1 2 4"},
		{"protocol=6&port=5", "5"},
		{"port=3", ""},
		{"direction=egress", "1 2 3 4"},
		{"direction=ingress", "1 2 4"},
		{"reason=spoofed-source", "5"},
		{"since=241s&until=60s", "1 2 3 4"},
		{"until=181s&last=1", "2"},
		{"from-pod=shop/web-1&to-pod=shop/db-0", "1 2 3 4"},
		{"from-pod=shop/db-0", ""},
		{"to-port=6379&from-port=2", "2"},
		{"to-address=fd00::/64&from-namespace=shop", "5"},
		{"not-pod=shop/db-0", "5"},
		{"not-verdict=dropped&not-protocol=icmp", "1 4"},
		{"not-to-port=6379&not-to-port=443", "3"},
		{"process=curl", "4"},
		{"process=redis-server", "4"},
		{"from-process=redis-server", ""},
		{"to-process=/usr/bin/redis-server", "4"},
		{"process=0123456789ab&to-process=77", "4"},
		{"namespace=shop&last=1", "5"},
		{"namespace=sho", ""},
		{"label=app=db", "1 2 3 4"},
		{"label=app%3Ddb,tier&label=app+in+(web)&verdict=dropped", "2 5"},
		{"workload=StatefulSet/db", "1 2 3 4"},
		{"workload=web&workload=cart", "1 2 3 4 5"},
		{"workload=Deployment/db", ""},
		{"identity=1002", "1 2 3 4 5"},
		{"identity=4294967295", ""},
		{"address=fd00::/64", "5"},
		{"address=10.0.0.3&verdict=dropped", "2"},
	} {
		v, err := url.ParseQuery(c.query)
		must(t, err)
		q, err := api.ParseFlowQuery(v)
		must(t, err)
		if back, err := api.ParseFlowQuery(q.Values()); err != nil || fmt.Sprint(back) != fmt.Sprint(q) {
			t.Errorf("%s: %v, %v after a round trip", c.query, back, err)
		}
		var to collector
		must(t, l.Query(t.Context(), q, &to))
		if got := sourcePorts(&to); got != c.want {
			t.Errorf("%s: records %q, want %q", c.query, got, c.want)
		}
	}
}

// sourcePorts are the numbers that fill and flood give records.
func sourcePorts(c *collector) string {
	var out []string
	for _, m := range c.got {
		switch {
		case m.GetLostEvents() != nil:
			out = append(out, fmt.Sprintf("(%d lost)", m.GetLostEvents().GetNumEventsLost()))
		case m.GetFlow().GetL4().GetTCP() != nil:
			out = append(out, fmt.Sprint(m.GetFlow().GetL4().GetTCP().GetSourcePort()))
		default:
			out = append(out, "3")
		}
	}
	return strings.Join(out, " ")
}

func TestBadQueries(t *testing.T) {
	for query, want := range map[string]string{
		"verdict=maybe":        `verdict: "maybe" is not one of forwarded, dropped`,
		"since=yesterday":      `since: "yesterday" is not a duration such as 30s, 5m or 2h`,
		"since=-5m":            `since: "-5m" is not a duration such as 30s, 5m or 2h`,
		"last=many":            `last: "many" is not a number above 0`,
		"pod=web-1":            `pod: "web-1" is not namespace/name (or namespace/ for all of it)`,
		"policy=shop/":         `policy: "shop/" is not namespace/name`,
		"protocol=http":        `protocol: "http" is not one of tcp, udp, sctp, icmp, icmpv4, icmpv6 or a protocol number`,
		"port=0":               `port: "0" is not a port number (1-65535)`,
		"port=65536":           `port: "65536" is not a port number (1-65535)`,
		"direction=both":       `direction: "both" is not one of egress, ingress`,
		"address=10.0.0.0/33":  `address: "10.0.0.0/33" is neither an address nor a CIDR`,
		"reason=bad-luck":      `reason: "bad-luck" is no drop reason; "weir status" lists those that occurred`,
		"namespace=shop/":      `namespace: "shop/" is not the name of a namespace`,
		"label=+":              `label: " " is empty`,
		"workload=a/b/c":       `workload: "a/b/c" is not a name or kind/name, as in Deployment/web`,
		"identity=web":         `identity: "web" is not an identity number; "weir identities" lists them`,
		"follow=please":        `follow: "please" is neither true nor false`,
		"until=soon":           `until: "soon" is not a duration such as 30s, 5m or 2h`,
		"since=5m&until=2h":    `until: 2h0m0s ago is before since, 5m0s ago: no record is in that range`,
		"not-colour=red":       `not-colour: no such parameter`,
		"from-verdict=dropped": `from-verdict: no such parameter`,
		"not-port=http":        `not-port: "http" is not a port number (1-65535)`,
		"to-address=10.0.0":    `to-address: "10.0.0" is neither an address nor a CIDR`,
		"colour=red&last=many": `colour: no such parameter`,
		"namespace=Bad_NS":     `namespace: "Bad_NS" is no name that an object can have: small letters, digits, dots and dashes`,
		"from-pod=shop/w*b":    `from-pod: "shop/w*b" is no name that an object can have: small letters, digits, dots and dashes`,
		"policy=shop/a%20b":    `policy: "shop/a b" is no name that an object can have: small letters, digits, dots and dashes`,

		"verdict=dropped&not-verdict=dropped&not-verdict=forwarded": `verdict: what is asked for is left out, too: no record can match`,
		"verdict=Forwarded&reason=policy":                           `reason: what is forwarded has none: no record can match`,
		"verdict=forwarded&kind=denied&kind=revoked":                `kind: what is denied or revoked is dropped, not forwarded: no record can match`,
		"verdict=dropped&kind=new":                                  `kind: what is new is forwarded, not dropped: no record can match`,
		"protocol=icmp&protocol=58&to-port=80":                      `port: icmp or 58 has none: no record can match`,
		"from-namespace=shop&from-pod=other/web&from-pod=third/":    `from-namespace: other/web or third/ is not of shop: no record can match`,
	} {
		v, err := url.ParseQuery(query)
		must(t, err)
		if _, err := api.ParseFlowQuery(v); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", query, err, want)
		}
	}
}

// What looks like a contradiction and is none.
func TestPossibleQueries(t *testing.T) {
	for _, query := range []string{
		"verdict=dropped&not-kind=revoked", "verdict=forwarded&verdict=dropped&reason=policy", "verdict=dropped&kind=ended", "verdict=forwarded&kind=new&kind=denied",
		"protocol=icmp&protocol=tcp&port=80", "namespace=shop&pod=other/web", "from-namespace=shop&to-pod=other/web", "from-namespace=shop&from-pod=shop/&from-pod=other/web", "pod=shop/&pod=kube-system/a.b-1",
		"port=80&port=81&not-port=81",
	} {
		v, err := url.ParseQuery(query)
		must(t, err)
		if _, err := api.ParseFlowQuery(v); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
}

// numbered is a flow whose source port says which one it is.
func numbered(port uint16) datapath.Event {
	return with(began(), func(e *datapath.Event) { e.Source = netip.AddrPortFrom(e.Source.Addr(), port) })
}

func TestRingKeepsTheNewest(t *testing.T) {
	l := newLog(shop(), 4)
	for port := range uint16(11) {
		l.add(numbered(port))
	}
	var to collector
	must(t, l.Query(t.Context(), api.FlowQuery{}, &to))
	if got := sourcePorts(&to); got != "7 8 9 10" {
		t.Errorf("kept %q", got)
	}
}

// A follower that was away while the ring went round is told how many records it missed,
// and goes on with what there is.
func TestSlowFollowerIsTold(t *testing.T) {
	l := newLog(shop(), 4)
	l.add(numbered(1))
	to := &collector{hold: make(chan struct{}), enough: 6}
	done := make(chan error)
	go func() { done <- l.Query(t.Context(), api.FlowQuery{Follow: true}, to) }()
	to.hold <- struct{}{} // it has record 1 and the ring's state of then
	for port := uint16(2); port <= 10; port++ {
		l.add(numbered(port))
	}
	close(to.hold)
	if err := <-done; !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	if got := sourcePorts(to); got != "1 (5 lost) 7 8 9 10" {
		t.Errorf("got %q", got)
	}
}

func TestFollowersEndWithTheRun(t *testing.T) {
	l := newLog(shop(), 0)
	to := &collector{}
	done := make(chan error)
	go func() { done <- l.Query(t.Context(), api.FlowQuery{Follow: true, Verdicts: []string{"dropped"}}, to) }()
	ctx, cancel := context.WithCancel(t.Context())
	r, ran := newReader(), make(chan error)
	go func() { ran <- l.Run(ctx, r) }()
	for port := range uint16(700) {
		r.events <- numbered(port)
	}
	r.events <- with(refused(), func(e *datapath.Event) { e.Source = netip.MustParseAddrPort("10.0.0.2:9") })
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := sourcePorts(to); got != "9" {
		t.Errorf("got %q", got)
	}
	var after collector
	must(t, l.Query(t.Context(), api.FlowQuery{Last: 1}, &after))
	if got := sourcePorts(&after); got != "9" {
		t.Errorf("after the run the newest record is %q", got)
	}
}

func TestFollowerLeaves(t *testing.T) {
	l := newLog(shop(), 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Query(ctx, api.FlowQuery{Follow: true}, &collector{}) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRunReportsABrokenReader(t *testing.T) {
	l, r := newLog(shop(), 0), newReader()
	r.broken = errors.New("ring is gone")
	close(r.events)
	if err := l.Run(t.Context(), r); err == nil || err.Error() != "read flow events: ring is gone" {
		t.Errorf("got %v", err)
	}
	select {
	case <-r.closed:
	default:
		t.Error("the reader was not closed")
	}
}

func TestSelections(t *testing.T) {
	l := newLog(shop(), 0)
	fill(l) // 1 to 5, from four minutes before noon on
	at := func(m int) time.Time { return noon.Add(time.Duration(m) * time.Minute) }
	for _, c := range []struct {
		s    Selection
		want string
	}{
		{Selection{Number: 2, First: true}, "1 2"},
		{Selection{Number: 2}, "4 5"},
		{Selection{Number: math.MaxUint64}, "1 2 3 4 5"},
		{Selection{Until: at(-2)}, "1 2 3"},
		{Selection{Until: at(-2), Number: 1}, "3"},
		{Selection{Since: at(-3), Until: at(-1), Number: 2, First: true}, "2 3"},
		{Selection{Since: at(-3), Until: at(-1), Number: 2}, "3 4"},
		{Selection{Since: at(-1), Until: at(-2)}, ""},
	} {
		var to collector
		must(t, l.Select(t.Context(), c.s, &to))
		if got := sourcePorts(&to); got != c.want {
			t.Errorf("%+v: records %q, want %q", c.s, got, c.want)
		}
	}
}

// A follower with an end is let go when it is over, though nothing comes any more.
func TestFollowUntil(t *testing.T) {
	l := newLog(shop(), 0)
	l.add(numbered(1))
	var to collector
	must(t, l.Select(t.Context(), Selection{Follow: true, Until: l.opts.Now().Add(-late)}, &to))
	if got := sourcePorts(&to); got != "1" {
		t.Errorf("got %q", got)
	}
}

func TestSelectorThatIsNone(t *testing.T) {
	l := newLog(shop(), 0)
	var wrong *FilterError
	err := l.Query(t.Context(), api.FlowQuery{FlowEnd: api.FlowEnd{Labels: []string{"app in (a"}}}, &collector{})
	if !errors.As(err, &wrong) || wrong.Field != "label" {
		t.Errorf("got %v", err)
	}
}

// What no one label can be is refused; what may be is not, whatever the source of its key.
func TestSelectorsThatContradictThemselves(t *testing.T) {
	l := newLog(shop(), 0)
	for text, want := range map[string]string{
		"app=web,app=db":              "app",
		"k8s:app=web,tier,k8s:app=db": "k8s.app",
		"app in (a, b),app in (c)":    "app",
		"app=a,app!=a":                "app",
		"app=a,!app":                  "app",
		"app,!app":                    "app",
		"app=web,app=web":             "",
		"app in (a, b),app in (b, c)": "",
		"app!=a,app!=b":               "",
		"app,app notin (a)":           "",
		"!app,app!=a":                 "",
		"app=web,k8s:app=db":          "",
		"n>5,n<3":                     "",
		"app=web,tier=db":             "",
	} {
		err := l.Query(t.Context(), api.FlowQuery{From: api.FlowEnd{Labels: []string{text}}}, &collector{})
		var wrong *FilterError
		switch {
		case want == "":
			if err != nil {
				t.Errorf("%s: refused: %v", text, err)
			}
		case !errors.As(err, &wrong) || wrong.Field != "from-label" || !errors.Is(err, errNever):
			t.Errorf("%s: got %v", text, err)
		case !strings.HasSuffix(err.Error(), "requires of "+want+" what no one label has"):
			t.Errorf("%s: got %v, of %s", text, err, want)
		}
	}
}

// A gap is told where it is and does not count for a number of flows.
func TestGapsDoNotCount(t *testing.T) {
	l := newLog(shop(), 0)
	l.add(numbered(1))
	l.add(numbered(2))
	l.tellLost(LostFlowEvents, 7, 0)
	l.add(numbered(4))
	l.tellLost(LostDenialEvents, 2, 0)
	for _, c := range []struct {
		s    Selection
		want string
	}{
		{Selection{Number: 2}, "2 (7 lost) 4 (2 lost)"},
		{Selection{Number: 3, First: true}, "1 2 (7 lost) 4"},
		{Selection{}, "1 2 (7 lost) 4 (2 lost)"},
	} {
		var to collector
		must(t, l.Select(t.Context(), c.s, &to))
		if got := sourcePorts(&to); got != c.want {
			t.Errorf("%+v: %q, want %q", c.s, got, c.want)
		}
	}
}

// Where a number bounds what is shown, gaps from before the oldest of it are not: they would be
// shown as long as the past lives. A time asked for has all its gaps.
func TestGapsBeforeWhatIsShown(t *testing.T) {
	l := newLog(shop(), 0)
	l.tellLost(LostFlowEvents, 7, 0)
	l.add(numbered(1))
	l.tellLost(LostFlowEvents, 8, 0)
	l.add(numbered(2))
	l.tellLost(LostFlowEvents, 9, 0)
	only := func(port uint16) Filter {
		return Filter{allow: []test{func(r *record) bool { return r.event.Source.Port() == port }}}
	}
	for _, c := range []struct {
		name string
		s    Selection
		want string
	}{
		{"fewer than the last asked for", Selection{Filter: only(2), Number: 5}, "2 (9 lost)"},
		{"one, with a gap after it", Selection{Filter: only(1), Number: 5}, "1 (8 lost) (9 lost)"},
		{"as many as asked for", Selection{Number: 2}, "1 (8 lost) 2 (9 lost)"},
		{"more than there are", Selection{Number: 5}, "1 (8 lost) 2 (9 lost)"},
		{"the first", Selection{Number: 2, First: true}, "1 (8 lost) 2"},
		{"the first, filtered", Selection{Filter: only(2), Number: 5, First: true}, "2 (9 lost)"},
		{"nothing", Selection{Filter: only(3), Number: 5}, ""},
		{"nothing, the first", Selection{Filter: only(3), Number: 5, First: true}, ""},
		{"nothing of a time", Selection{Filter: only(3), Number: 5, Since: noon.Add(-time.Hour)}, "(7 lost) (8 lost) (9 lost)"},
		{"the first of a time", Selection{Number: 1, First: true, Since: noon.Add(-time.Hour)}, "(7 lost) 1"},
		{"all, as Hubble asks for it", Selection{Filter: only(2), Number: math.MaxUint64}, "(7 lost) (8 lost) 2 (9 lost)"},
		{"no number", Selection{Filter: only(2)}, "(7 lost) (8 lost) 2 (9 lost)"},
	} {
		var to collector
		must(t, l.Select(t.Context(), c.s, &to))
		if got := sourcePorts(&to); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
