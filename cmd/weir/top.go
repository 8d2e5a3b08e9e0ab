package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// What --top counts by, and what it counts.
const (
	topSource      = "src"
	topDestination = "dst"
	topPolicy      = "policy"
	topProcess     = "process"
	topReason      = "reason"
	topPort        = "port"

	byFlows   = "flows"
	byPackets = "packets"
	byBytes   = "bytes"
)

var (
	topKeys   = []string{topSource, topDestination, topPolicy, topProcess, topReason, topPort}
	topCounts = []string{byPackets, byBytes, byFlows}
)

const (
	topRows   = 20          // written where nothing says how many fit
	topEvery  = time.Second // a terminal's table is drawn again
	topFlows  = 1 << 17     // open flows whose counts are followed
	topOthers = 1 << 15     // keys; more are counted together
)

func (f *flowFlags) checkTop(changed func(string) bool) error {
	switch {
	case changed("top") && !slices.Contains(topKeys, f.top):
		return usage("--top: %q is not one of %s", f.top, strings.Join(topKeys, ", "))
	case !slices.Contains(topCounts, f.by):
		return usage("--by: %q is not one of %s", f.by, strings.Join(topCounts, ", "))
	case changed("by") && f.top == "":
		return usage("--by: it says what --top counts, which is not given")
	}
	return nil
}

// topRow is what was counted of a key.
type topRow struct {
	Key     string `json:"key"`
	Flows   uint64 `json:"flows"`   // that began, were going on, or were denied at their first packet
	Denied  uint64 `json:"denied"`  // packets
	Packets uint64 `json:"packets"` // both ways, and the denied ones
	Bytes   uint64 `json:"bytes"`   // both ways
}

func (r *topRow) by(what string) uint64 {
	switch what {
	case byPackets:
		return r.Packets
	case byBytes:
		return r.Bytes
	}
	return r.Flows
}

// top counts records. Of a flow's records each has the counters so far: what an earlier one
// had is taken off.
type top struct {
	key  string
	rows map[string]*topRow
	open map[string][2]uint64 // packets and bytes counted so far, by flow
	lost uint64
	seen uint64

	unsized uint64 // packets that were only counted: how large they were no record says
}

func newTop(key string) *top {
	return &top{key: key, rows: map[string]*topRow{}, open: map[string][2]uint64{}}
}

func (t *top) add(m *observerpb.GetFlowsResponse) {
	t.lost += m.GetLostEvents().GetNumEventsLost()
	f := m.GetFlow()
	if f == nil {
		return
	}
	t.seen++
	x := format.Extension(f)
	n := t.count(m.GetNodeName(), f, x)
	for _, key := range t.keys(f, x) {
		r := t.rows[key]
		if r == nil && len(t.rows) >= topOthers {
			key = "(others)"
			r = t.rows[key]
		}
		if r == nil {
			r = &topRow{Key: key}
			t.rows[key] = r
		}
		r.Flows += n.Flows
		r.Denied += n.Denied
		r.Packets += n.Packets
		r.Bytes += n.Bytes
	}
}

// count is what a record adds.
func (t *top) count(node string, f *flowpb.Flow, x api.FlowExtension) topRow {
	if x.Kind == api.FlowDenied {
		packets, bytes := uint64(1), uint64(0)
		if x.Packets != nil && x.Packets.Sent > 0 {
			packets = x.Packets.Sent
		}
		if x.Bytes != nil {
			bytes = x.Bytes.Sent
		}
		if x.Suppressed > 0 {
			packets = x.Suppressed
			t.unsized += packets
		}
		return topRow{Flows: packets, Denied: packets, Packets: packets, Bytes: bytes}
	}
	key := strings.Join([]string{node, f.GetIP().GetSource(), f.GetIP().GetDestination(), format.Port(f), format.SourcePort(f), format.ProtocolName(f)}, " ")
	before, known := t.open[key]
	if x.Kind == api.FlowNew {
		before, known = [2]uint64{}, false // another on the same tuple
	}
	var n topRow
	if !known {
		n.Flows = 1
	}
	var now [2]uint64
	if x.Packets != nil && x.Bytes != nil {
		now = [2]uint64{x.Packets.Sent + x.Packets.Received, x.Bytes.Sent + x.Bytes.Received}
	}
	n.Packets, n.Bytes = now[0]-min(before[0], now[0]), now[1]-min(before[1], now[1])
	if x.Kind == api.FlowEnded || x.Kind == api.FlowRevoked {
		delete(t.open, key)
		return n
	}
	if len(t.open) >= topFlows {
		clear(t.open)
	}
	t.open[key] = now
	return n
}

// keys are what a record counts for; several policies, perhaps.
func (t *top) keys(f *flowpb.Flow, x api.FlowExtension) []string {
	switch t.key {
	case topSource:
		return []string{format.Source(f)}
	case topDestination:
		return []string{format.Destination(f)}
	case topPolicy:
		return format.Policies(x)
	case topProcess:
		return []string{cmp.Or(format.Process(x.Process), "(unknown)")}
	case topReason:
		if x.Reason == "" {
			return nil
		}
		return []string{format.Safe(x.Reason)}
	}
	return []string{cmp.Or(format.Port(f), "-") + "/" + format.ProtocolName(f)}
}

// sorted are the rows, most of what is counted first.
func (t *top) sorted(by string) []*topRow {
	return slices.SortedFunc(maps.Values(t.rows), func(a, b *topRow) int {
		return cmp.Or(cmp.Compare(b.by(by), a.by(by)), cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Key, b.Key))
	})
}

// table of at most so many rows.
func (t *top) table(f *flowFlags, most int) table {
	heads := map[string]string{topSource: "SOURCE", topDestination: "DESTINATION", topPolicy: "POLICY", topProcess: "PROCESS", topReason: "REASON", topPort: "PORT"}
	out := table{head: []string{heads[t.key], "FLOWS", "DENIED", "PACKETS", "BYTES", "%"}}
	rows, total := t.sorted(f.by), uint64(0)
	for _, r := range rows {
		total += r.by(f.by)
	}
	for i, head := range out.head {
		if strings.EqualFold(head, f.by) {
			out.head[i] += "*"
		}
	}
	for i, r := range rows {
		if i == most {
			break
		}
		out.folds = true // what tells rows apart may be at their keys' ends
		out.add(r.Key, fmt.Sprint(r.Flows), fmt.Sprint(r.Denied), fmt.Sprint(r.Packets), format.Bytes(r.Bytes), fmt.Sprintf("%.1f", 100*float64(r.by(f.by))/float64(max(total, 1))))
	}
	return out
}

// rest says what the table leaves out.
func (t *top) rest(most int) string {
	text := fmt.Sprintf("%d records", t.seen)
	if n := len(t.rows) - most; n > 0 {
		text += fmt.Sprintf(", %d more rows", n)
	}
	return text
}

// stream yields records, as lines of JSON, until its context is over.
type stream func(ctx context.Context, each func(line []byte) error) error

// records are those of this node's agent.
func (a *app) records(q api.FlowQuery) stream {
	return func(ctx context.Context, each func([]byte) error) error {
		return a.askFlows(ctx, q, each)
	}
}

// showTop counts what comes: drawn again and again on a terminal that follows, written once
// elsewhere, when all has come or the user has seen enough.
func (a *app) showTop(ctx context.Context, f *flowFlags, q api.FlowQuery, from stream) error {
	live := q.Follow && a.width > 0 && a.output != outputJSON
	lines, ended := make(chan []byte, 1024), make(chan error, 1)
	go func() {
		err := from(ctx, func(line []byte) error {
			select {
			case lines <- slices.Clone(line):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		close(lines)
		ended <- err
	}()
	t, drawn := newTop(f.top), 0
	tick := time.NewTicker(topEvery)
	defer tick.Stop()
	draw := func() error {
		if !live {
			return nil
		}
		var err error
		drawn, err = a.drawTop(t, f, drawn)
		return err
	}
	for open := true; open; {
		select {
		case line, more := <-lines:
			if open = more; !open {
				break
			}
			m, err := format.Parse(line)
			if err != nil {
				return err
			}
			t.add(m)
			continue
		case <-tick.C:
		}
		if err := draw(); err != nil {
			return err
		}
	}
	err := <-ended
	interrupted := q.Follow && ctx.Err() != nil
	if live {
		if interrupted {
			return nil
		}
		return cmp.Or(err, errors.New("the agent ended the stream: it stopped"))
	}
	if interrupted {
		err = nil
	}
	if err != nil && t.seen == 0 {
		return err // there is nothing to show
	}
	return errors.Join(err, a.writeTop(t, f))
}

// writeTop writes the table, once.
func (a *app) writeTop(t *top, f *flowFlags) error {
	if a.output == outputJSON {
		rows := t.sorted(f.by)
		if rows == nil {
			rows = []*topRow{}
		}
		return a.json(struct {
			Top  string    `json:"top"`
			By   string    `json:"by"`
			Lost uint64    `json:"lost"` // records that are missing in it
			Rows []*topRow `json:"rows"`

			Unsized uint64 `json:"unsized,omitempty"` // denied packets in it whose bytes are not
		}{t.key, f.by, t.lost, rows, t.unsized})
	}
	if err := a.table(t.table(f, topRows)); err != nil {
		return err
	}
	if t.unsized > 0 {
		if err := a.print(a.style.Warn(fmt.Sprintf("%d denied packets were only counted: BYTES leaves them out", t.unsized))); err != nil {
			return err
		}
	}
	return a.tellLost(t)
}

func (a *app) tellLost(t *top) error {
	if t.lost == 0 {
		return nil
	}
	return a.print(a.style.Warn(fmt.Sprintf("%d records were lost: the numbers are too low", t.lost)))
}

// drawTop draws the table over the one of before, which took so many lines.
func (a *app) drawTop(t *top, f *flowFlags, before int) (lines int, err error) {
	width, height := size(a.out)
	if width > 0 {
		a.width = width
	}
	most := max(height-4, 3)
	var text strings.Builder
	if before > 0 {
		fmt.Fprintf(&text, "\x1b[%dA\x1b[J", before)
	}
	drawn := *a
	drawn.out = &text
	table := t.table(f, most)
	most = table.cut(a.width, most)
	if err := drawn.table(table); err != nil {
		return before, err
	}
	line := fmt.Sprintf("%s  %s", time.Now().Format(time.TimeOnly), t.rest(most))
	if t.lost > 0 {
		line += fmt.Sprintf(", %d lost", t.lost)
	}
	if t.unsized > 0 {
		line += fmt.Sprintf(", BYTES without %d denied packets", t.unsized)
	}
	if err := drawn.print(a.style.Faint(fit(line, max(min(len(line), a.width), 1)))); err != nil {
		return before, err
	}
	if _, err := fmt.Fprint(a.out, text.String()); err != nil {
		return before, err
	}
	return strings.Count(text.String(), "\n"), nil
}
