// Package latency says how long it takes until packets show a change.
package latency

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

const (
	beat    = 2 * time.Millisecond
	late    = 60 * time.Millisecond  // no answer until then: there is none
	settled = 200 * time.Millisecond // of probes that all say the same
	limit   = time.Minute
)

// Prober asks over UDP all the time, and knows which of its questions were answered.
type Prober struct {
	conn net.Conn
	mu   sync.Mutex
	sent []time.Time
	got  []bool
}

// Probe asks who is at an address (HOST:PORT) from within a namespace and from one of its
// addresses, "" for any, until ctx is over. What it asks is "echo N", and an answer is N with
// or without the rest.
func Probe(ctx context.Context, from *lab.Host, source, addr string) (*Prober, error) {
	p := &Prober{}
	dialer := net.Dialer{}
	if source != "" {
		dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
	}
	if err := from.Do(func() (err error) {
		p.conn, err = dialer.Dial("udp", addr)
		return err
	}); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { p.conn.Close() })
	go p.ask(ctx)
	go p.hear()
	return p, nil
}

const question = "echo "

func (p *Prober) ask(ctx context.Context) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		p.mu.Lock()
		p.sent, p.got = append(p.sent, time.Now()), append(p.got, false)
		text := fmt.Sprint(question, len(p.sent)-1)
		p.mu.Unlock()
		_, _ = p.conn.Write([]byte(text))
	}
}

func (p *Prober) hear() {
	b := make([]byte, 64)
	for {
		n, err := p.conn.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if i, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(string(b[:n])), question)); err == nil {
			p.mu.Lock()
			p.got[i] = true
			p.mu.Unlock()
		}
	}
}

// Since an event: how long until a question was the first of those that all are answered, or
// all are not.
func (p *Prober) Since(event time.Time, answered bool) (time.Duration, error) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		last := len(p.sent) - 1
		for last >= 0 && time.Since(p.sent[last]) < late {
			last--
		}
		first := last + 1
		for first > 0 && p.got[first-1] == answered && p.sent[first-1].After(event) {
			first--
		}
		var from, to time.Time
		if first <= last {
			from, to = p.sent[first], p.sent[last]
		}
		p.mu.Unlock()
		if first <= last && to.Sub(from) >= settled {
			return from.Sub(event), nil
		}
	}
	return 0, fmt.Errorf("not within %s: all questions answered: %v", limit, answered)
}

// Figures of one kind of latency.
type Figures []time.Duration

// At is the figure that a share of all is below.
func (f Figures) At(share float64) time.Duration {
	slices.Sort(f)
	return f[min(int(share*float64(len(f))), len(f)-1)]
}

func (f Figures) String() string {
	return fmt.Sprintf("p50 %7.1f ms   p99 %7.1f ms   (%d)", Milliseconds(f.At(.5)), Milliseconds(f.At(.99)), len(f))
}

// Milliseconds of a duration.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
