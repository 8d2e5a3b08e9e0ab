package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// flow is a record of web-N -> db:6379 as the agent writes it.
func flow(t *testing.T, kind string, from int, packets, bytes uint64) string {
	t.Helper()
	x := api.FlowExtension{
		Kind: kind, Packets: &api.FlowCount{Sent: packets}, Bytes: &api.FlowCount{Sent: bytes / 2, Received: bytes - bytes/2},
		Egress:  &api.FlowRule{ID: 3, Verdict: "FORWARDED", Kind: "not-isolated"},
		Ingress: &api.FlowRule{ID: 300, Verdict: "FORWARDED", Kind: "NetworkPolicy", Namespace: "shop", Name: "db", Index: new(int)},
		Process: &api.FlowProcess{PID: 7, Name: "curl\x1b[2J"},
	}
	verdict := "FORWARDED"
	if kind == api.FlowDenied {
		verdict, x.Reason, x.Ingress = "DROPPED", "policy", &api.FlowRule{ID: 301, Verdict: "DROPPED", Kind: "default-deny", IsolatedBy: []api.Ref{{Namespace: "shop", Name: "db"}}}
	}
	b, err := json.Marshal(x)
	must(t, err)
	value, err := json.Marshal(string(b))
	must(t, err)
	return fmt.Sprintf(`{"flow":{"time":"2026-11-24T12:00:00.5Z","verdict":"%s","IP":{"source":"10.0.0.%d","destination":"10.0.0.99"},"l4":{"TCP":{"source_port":40001,"destination_port":6379}},`+
		`"source":{"namespace":"shop","pod_name":"web-%d"},"destination":{"namespace":"shop","pod_name":"db-0"},"Summary":"TCP Flags: SYN",`+
		`"extensions":{"@type":"type.googleapis.com/google.protobuf.StringValue","value":%s}},"node_name":"worker-1","time":"2026-11-24T12:00:00.5Z"}`, verdict, from, from, value)
}

// conversation is three flows: two of web-1's, one on the tuple of the other, one of web-2's
// that ends, and a denial of web-3's.
func conversation(t *testing.T) string {
	return strings.Join([]string{
		flow(t, api.FlowNew, 1, 1, 60), flow(t, api.FlowUpdate, 1, 10, 1000), flow(t, api.FlowUpdate, 1, 30, 2000), flow(t, api.FlowEnded, 1, 50, 4000),
		flow(t, api.FlowNew, 1, 1, 60),
		flow(t, api.FlowEnded, 2, 5, 100000),
		flow(t, api.FlowDenied, 3, 1, 60), flow(t, api.FlowDenied, 3, 1, 60),
		lostRecord,
	}, "\n") + "\n"
}

// Packets that were only counted have no bytes, and a table that adds up bytes says so.
func TestTopOfCountedDenials(t *testing.T) {
	counted := strings.Replace(flow(t, api.FlowDenied, 3, 1, 0), `"value":"{`, `"value":"{\"suppressed\":70,`, 1)
	lines := flow(t, api.FlowDenied, 3, 1, 60) + "\n" + counted + "\n"
	a := startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, lines) }})
	r := a.weir(t, "flows", "--top", "src", "--by", "bytes")
	if r.status != exitDone || !strings.HasSuffix(r.out, "\n70 denied packets were only counted: BYTES leaves them out\n") || !strings.Contains(r.out, " 71 ") {
		t.Errorf("%v", r)
	}
	if r := a.weir(t, "flows", "--top", "src", "-o", "json"); r.status != exitDone || !strings.Contains(r.out, `"unsized": 70`) {
		t.Errorf("%v", r)
	}
}

func TestTop(t *testing.T) {
	lines := conversation(t)
	a := startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, lines) }})
	for _, c := range []struct{ args, want string }{
		{"src", "shop/web-1 2 0 51 4.1 kB 40.0|shop/web-3 2 2 2 60 B 40.0|shop/web-2 1 0 5 100.0 kB 20.0"},
		{"src --by bytes", "shop/web-2 1 0 5 100.0 kB 96.0|shop/web-1 2 0 51 4.1 kB 3.9|shop/web-3 2 2 2 60 B 0.1"},
		{"dst --by packets", "shop/db-0 5 2 58 104.1 kB 100.0"},
		{"policy", "not isolated 3 0 56 104.1 kB 37.5|shop/db[0] 3 0 56 104.1 kB 37.5|default deny of shop/db 2 2 2 60 B 25.0"},
		{"process", `curl\x1b[2J 5 2 58 104.1 kB 100.0`},
		{"reason", "policy 2 2 2 60 B 100.0"},
		{"port", "6379/TCP 5 2 58 104.1 kB 100.0"},
	} {
		r := a.weir(t, append([]string{"flows", "--top"}, strings.Fields(c.args)...)...)
		rows := strings.Split(strings.TrimSpace(r.out), "\n")
		for i := range rows {
			rows[i] = strings.Join(strings.Fields(rows[i]), " ")
		}
		if got := strings.Join(rows[1:len(rows)-1], "|"); r.status != exitDone || got != c.want || rows[len(rows)-1] != "12 records were lost: the numbers are too low" {
			t.Errorf("--top %s: %v", c.args, r)
		}
	}
	if got := a.asked()[0]; got != api.PathFlows {
		t.Errorf("asked %s, which is not all there is", got)
	}
	r := a.weir(t, "flows", "--top", "src", "-o", "json")
	var got struct {
		Lost uint64
		Rows []topRow
	}
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || got.Lost != 12 || len(got.Rows) != 3 || got.Rows[0] != (topRow{Key: "shop/web-1", Flows: 2, Packets: 51, Bytes: 4060}) {
		t.Errorf("%v, %v", r, err)
	}
}

// terminal is a pseudo terminal of that size: what is written to it is read from the other end.
func terminal(t *testing.T, width, height uint16) (inside, outside *os.File) {
	t.Helper()
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = outside.Close() })
	must(t, unix.IoctlSetPointerInt(int(outside.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(outside.Fd()), unix.TIOCGPTN)
	must(t, err)
	inside, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { _ = inside.Close() })
	must(t, unix.IoctlSetWinsize(int(inside.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width}))
	return inside, outside
}

// On a terminal the table is drawn again and again over itself, and fits it.
func TestTopIsLiveOnATerminal(t *testing.T) {
	inside, outside := terminal(t, 60, 8)
	ctx, interrupt := context.WithTimeout(t.Context(), time.Minute)
	defer interrupt()
	a := startAgent(t, map[string]any{api.PathFlows: func(w http.ResponseWriter, r *http.Request) {
		for n := range 30 {
			fmt.Fprintln(w, flow(t, api.FlowNew, n, 1, 60))
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}})
	status := make(chan int, 1)
	go func() {
		status <- run(ctx, []string{"flows", "--top", "src", "--state-dir", a.dir}, streams{out: inside, err: io.Discard})
	}()
	var text strings.Builder
	for b := make([]byte, 4096); strings.Count(text.String(), "\x1b[6A\x1b[J") < 2; {
		n, err := outside.Read(b)
		must(t, err)
		text.Write(b[:n])
	}
	interrupt()
	if got := <-status; got != exitDone {
		t.Errorf("interrupted: status %d", got)
	}
	if got := a.asked()[0]; got != api.PathFlows+"?follow=1" {
		t.Errorf("asked %s", got)
	}
	last := text.String()[strings.LastIndex(text.String(), "\x1b[J"):]
	for line := range strings.SplitSeq(text.String(), "\r\n") {
		for _, colour := range []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[6A\x1b[J"} {
			line = strings.ReplaceAll(line, colour, "")
		}
		if len([]rune(line)) > 60 {
			t.Errorf("%d characters: %q", len([]rune(line)), line)
		}
	}
	if !strings.Contains(text.String(), "30 records, 26 more rows") {
		t.Errorf("%q", last)
	}
}

// Rows fit every width of a terminal; nothing in them steers it.
func TestWideFitsTheTerminal(t *testing.T) {
	m, err := format.Parse([]byte(flow(t, api.FlowEnded, 1, 5, 100000)))
	must(t, err)
	whole := strings.Join(strings.Fields(format.Compact(m, format.Style{})), "")
	why := whole[strings.LastIndex(whole, ";")+1:]
	for _, width := range []int{20, 60, 80, 100, 120, 160, 300} {
		for _, node := range []bool{false, true} {
			w := &format.Wide{Width: width, Node: node}
			row := w.Line(m)
			for _, line := range append(strings.Split(row, "\n"), w.Head()) {
				if n := len([]rune(line)); width >= 60 && n > width || strings.Contains(line, "\x1b") {
					t.Errorf("width %d: %d characters: %q", width, n, line)
				}
			}
			if got := strings.Join(strings.Fields(row), ""); !strings.HasSuffix(got, why) {
				t.Errorf("width %d: %q does not say why, %q", width, row, why)
			}
		}
	}
}

func TestAgo(t *testing.T) {
	zone := time.FixedZone("", 3600)
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, zone)
	for text, want := range map[string]time.Duration{
		"": 0, "5m": 5 * time.Minute, "2026-11-24T10:00:00Z": time.Hour, "2026-11-24": 12 * time.Hour, "11:30": 30 * time.Minute, "11:59:58": 2 * time.Second, "2026-11-23 12:00": 24 * time.Hour, "13:00": 23 * time.Hour, "12:00": 24 * time.Hour,
	} {
		if got, err := ago(text, now); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"0s", "-1m", "2026-11-24 13:00", "soon", "2026-13-01"} {
		if got, err := ago(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// On a narrow terminal rows are told apart though their keys begin alike, and the table fits
// its height.
func TestTopFoldsLongKeys(t *testing.T) {
	t.Parallel()
	tab := table{head: []string{"POLICY", "FLOWS"}, folds: true}
	for _, last := range []string{"web", "cart", "orders"} {
		tab.add("default deny of shop/default-deny, shop/"+last, "12345")
	}
	var b strings.Builder
	a := &app{streams: streams{out: &b}, width: 40}
	if err := a.table(tab); err != nil {
		t.Fatal(err)
	}
	for _, last := range []string{"web", "cart", "orders"} {
		if !strings.Contains(b.String(), "shop/"+last+"\n") {
			t.Errorf("no %s in\n%s", last, b.String())
		}
	}
	for line := range strings.SplitSeq(b.String(), "\n") {
		if len(line) > 40 {
			t.Errorf("%d characters: %q", len(line), line)
		}
	}
	for lines, want := range map[int]int{100: 3, 6: 3, 5: 2, 4: 2, 1: 1} {
		cut := tab
		if got := cut.cut(40, lines); got != want || len(cut.rows) != want {
			t.Errorf("%d rows in %d lines, want %d", got, lines, want)
		}
	}
}

func TestFold(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "one": "one", "one two": "one two", "one two three": "one two|three", "muchtoolong one": "muchtoolong|one",
		"a bbbbbbb ccccccc ddddddd eeeeeee": "a|bbbbbbb|ccccccc|ddddddd eeeeeee",
	} {
		if got := strings.Join(fold(text, 7, 4), "|"); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
