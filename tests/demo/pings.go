package main

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

// pings is one redis-cli that asks PING again and again over one connection. It sets no
// timeout: a connection that is cut shows as silence.
type pings struct {
	cmd   *exec.Cmd
	mu    sync.Mutex
	count int
	last  time.Time
	gap   time.Duration // the longest between two answers
	other string        // anything said but PONG: a lost connection, an error
}

func startPings(from, to *lab.Host) (*pings, error) {
	p := &pings{cmd: exec.Command("redis-cli", "-h", to.Addr4, "-r", "-1", "-i", "0.02", "ping")}
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := from.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start redis-cli in %s: %w", from.Name, err)
	}
	go p.listen(r)
	go func() { w.CloseWithError(p.cmd.Wait()) }()
	return p, p.await(10)
}

func (p *pings) listen(r io.Reader) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		p.hear(lines.Text())
	}
}

func (p *pings) hear(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.TrimSpace(line) != "PONG" {
		p.other = line
		return
	}
	now := time.Now()
	if p.count > 0 {
		p.gap = max(p.gap, now.Sub(p.last))
	}
	p.count, p.last = p.count+1, now
}

// state is a copy of what was heard.
func (p *pings) state() pings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pings{count: p.count, last: p.last, gap: p.gap, other: p.other}
}

// await waits for n more answers.
func (p *pings) await(n int) error {
	want := p.state().count + n
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if p.state().count >= want {
			return nil
		}
	}
	s := p.state()
	return fmt.Errorf("redis-cli: no %d more answers in 5 s (%d so far) %s", n, s.count, s.other)
}

// awaitSilence waits until nothing was heard for a time, and returns the time of the last answer.
func (p *pings) awaitSilence(quiet, limit time.Duration) (time.Time, error) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if s := p.state(); time.Since(s.last) >= quiet {
			return s.last, nil
		}
	}
	return time.Time{}, fmt.Errorf("redis-cli still gets answers after %v", limit)
}

func (p *pings) stop() { _ = p.cmd.Process.Kill() }
