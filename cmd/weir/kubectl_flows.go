package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/weirnet/weir/controlplane/flowlog/format"
)

// settle is how long a record of one node waits for older ones of others.
const settle = 500 * time.Millisecond

// flowsOf merges the nodes' records by time: each node gives its newest, the newest of
// those are shown; followed, they are shown as they come, half a second late.
func (p *plugin) flowsOf(ctx context.Context, pods []pod) error {
	flags := &flowFlags{}
	set := pflag.NewFlagSet("flows", pflag.ContinueOnError)
	set.Usage = func() {}
	set.StringVarP(&p.output, "output", "o", outputCompact, "")
	set.String("state-dir", "", "")
	flags.add(set)
	if err := set.Parse(p.args[1:]); err != nil {
		return usageError{err}
	}
	if set.NArg() > 0 {
		return usage("flows: unexpected argument %q", set.Arg(0))
	}
	if !slices.Contains(flowOutputs, p.output) {
		return usage("--output: %q is not one of %s", p.output, strings.Join(flowOutputs, ", "))
	}
	now := time.Now()
	q, err := flags.query(set.Changed, now)
	if err != nil {
		return err
	}
	m := &merge{plugin: p, pods: pods, args: p.onNodes(set.Changed, q.Since, q.Until, flags)}
	if flags.top == "" {
		m.show = p.flowPrinter(true)
		return m.flows(ctx, q.Follow, q.Last)
	}
	if p.width > 0 && p.output != outputJSON && !boundedBy(set.Changed) && !q.Follow {
		q.Follow = true
		m.args = append(m.args, "--follow")
	}
	return p.showTop(ctx, flags, q, m.records)
}

// onNodes are the arguments for the nodes' own weir: times are said as durations, as a node's
// clock may be in another zone, and what is shown here is JSON there.
func (p *plugin) onNodes(changed func(string) bool, since, until time.Duration, flags *flowFlags) []string {
	for _, name := range []string{"-o", "--output", "--since", "--until", "--top", "--by"} {
		_, _ = p.take(name)
	}
	args := slices.Clone(p.args)
	if until > 0 {
		args = append(args, "--until="+until.String())
	}
	if since == 0 && flags.top != "" && !changed("last") {
		since = 100 * 365 * 24 * time.Hour // all there is
	}
	if since > 0 {
		args = append(args, "--since="+since.String())
	}
	return append(args, "--output=json")
}

// merge is flow records of several nodes.
type merge struct {
	*plugin
	pods []pod
	args []string
	show func(line []byte) error

	mu      sync.Mutex
	waiting []flowRecord
}

type flowRecord struct {
	at   time.Time // of the record
	came time.Time
	line []byte
}

// records hands on what the nodes say, one at a time. A node that cannot be asked, or whose
// records end, is named at once; the others go on.
func (m *merge) records(ctx context.Context, each func(line []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make([]error, len(m.pods))
	var wait sync.WaitGroup
	var one sync.Mutex
	for i, to := range m.pods {
		wait.Go(func() {
			r, w := io.Pipe()
			read := make(chan error, 1)
			go func() {
				read <- lines(r, func(line []byte) error {
					one.Lock()
					defer one.Unlock()
					return each(line)
				})
			}()
			said := &told{to: m.err, mu: &one, node: to.node}
			err := m.exec(ctx, to, m.args, w, said)
			_ = w.Close() // of a pipe: nil
			said.end()
			if reading := <-read; reading != nil {
				cancel() // whoever wanted them has had enough
				failed[i] = reading
			} else if err != nil && ctx.Err() == nil {
				failed[i] = &missing{to.node, err}
				if said.n == 0 {
					said.tell(fmt.Sprintf("its flows are missing from now on: %v", err))
				}
			}
		})
	}
	wait.Wait()
	return cmp.Or(failed...)
}

// missing is a node whose flows are not in the answer.
type missing struct {
	node string
	err  error
}

func (e *missing) Error() string {
	return fmt.Sprintf("flows of node %s are missing: %v", e.node, e.err)
}

// told is what a node says of trouble, as it says it.
type told struct {
	to   io.Writer
	mu   *sync.Mutex
	node string
	part []byte
	n    int
}

func (t *told) Write(b []byte) (int, error) {
	t.part = append(t.part, b...)
	for {
		line, rest, whole := bytes.Cut(t.part, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		t.part = rest
		t.tell(string(line))
	}
}

func (t *told) end() {
	if len(t.part) > 0 {
		t.tell(string(t.part))
	}
}

func (t *told) tell(line string) {
	if strings.HasPrefix(line, "command terminated with exit code") { // kubectl's own
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	fmt.Fprintf(t.to, "%s: %s\n", format.Safe(t.node), format.Safe(strings.TrimRight(line, "\r")))
}

func lines(from io.ReadCloser, each func([]byte) error) error {
	defer from.Close() // whoever still writes is told
	for in := bufio.NewReader(from); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = each(bytes.TrimRight(line, "\n"))
		}
		if err != nil {
			return err
		}
	}
}

func (m *merge) flows(ctx context.Context, follow bool, most int) error {
	stop := func() error { return nil }
	if follow {
		stop = m.showLate()
	}
	err := m.records(ctx, m.add)
	if follow {
		err = errors.Join(err, stop())
		if ctx.Err() != nil {
			return nil // interrupted, as it is meant to end
		}
		return err
	}
	return errors.Join(err, m.flush(func(flowRecord) bool { return true }, most))
}

func (m *merge) add(line []byte) error {
	record, err := format.Parse(line)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting = append(m.waiting, flowRecord{record.GetTime().AsTime(), time.Now(), line})
	return nil
}

// showLate shows records in their order once they have waited for each other, until the
// function that it returns is called.
func (m *merge) showLate() (stop func() error) {
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(settle / 5)
		defer tick.Stop()
		var err error
		for err == nil {
			select {
			case <-end:
				ended <- m.flush(func(flowRecord) bool { return true }, 0)
				return
			case <-tick.C:
				before := time.Now().Add(-settle)
				err = m.flush(func(r flowRecord) bool { return r.came.Before(before) }, 0)
			}
		}
		<-end
		ended <- err
	}()
	return func() error { close(end); return <-ended }
}

// flush shows those records that are due, of all that wait the newest most (0: all).
func (m *merge) flush(due func(flowRecord) bool, most int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var now, later []flowRecord
	for _, r := range m.waiting {
		if due(r) {
			now = append(now, r)
		} else {
			later = append(later, r)
		}
	}
	m.waiting = later
	slices.SortStableFunc(now, func(a, b flowRecord) int { return a.at.Compare(b.at) })
	if most > 0 && len(now) > most {
		now = now[len(now)-most:]
	}
	for _, r := range now {
		if err := m.show(r.line); err != nil {
			return err
		}
	}
	return nil
}
