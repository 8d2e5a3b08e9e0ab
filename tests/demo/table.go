package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// service is a column of the table: a port that somebody serves.
type service struct {
	pod  string
	port int
}

func (s service) String() string {
	_, name, _ := strings.Cut(s.pod, "/")
	return fmt.Sprintf("%s:%d", name, s.port)
}

var services = []service{
	{"shop/web", 80}, {"shop/web", 9100}, {"shop/cart", 8080}, {"shop/cart", 9100}, {"shop/database", 6379}, {"shop/database", 9100},
}

// cell is one client's way to one service.
type cell struct {
	from      string
	to        service
	reachable bool // as a real client found it
	reference bool // as the reference verdict has it
}

// table is who reaches what: rows by client, columns by service. A pod's way to itself is
// not in it.
type table [][]*cell

func newTable(clients []string) table {
	var t table
	for _, from := range clients {
		var row []*cell
		for _, to := range services {
			if to.pod == from {
				row = append(row, nil)
				continue
			}
			row = append(row, &cell{from: from, to: to})
		}
		t = append(t, row)
	}
	return t
}

// each runs f for every cell, a few at a time, and returns one error if there is any.
func (t table) each(f func(*cell) error) error {
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
		room  = make(chan struct{}, 12)
	)
	for _, row := range t {
		for _, c := range row {
			if c == nil {
				continue
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				room <- struct{}{}
				defer func() { <-room }()
				if err := f(c); err != nil {
					once.Do(func() { first = err })
				}
			}()
		}
	}
	wg.Wait()
	return first
}

// consult fills in the reference verdicts.
func (t table) consult(ctx context.Context, s *shop) error {
	return t.each(func(c *cell) (err error) {
		c.reference, err = s.reference(ctx, c.from, c.to)
		return err
	})
}

// probe has real clients try every cell.
func (t table) probe(ctx context.Context, s *shop) error {
	return t.each(func(c *cell) (err error) {
		c.reachable, err = s.reaches(ctx, c.from, c.to)
		return err
	})
}

// reference asks `weir policy explain`.
func (s *shop) reference(ctx context.Context, from string, to service) (bool, error) {
	if from == "outside" {
		from = s.node.Outside.Addr4
	}
	r := s.node.Weir(ctx, "policy", "explain", "--from", from, "--to", to.pod, "--port", fmt.Sprintf("%d/tcp", to.port), "--family", "4", "-o", "json")
	var e api.Explanation
	if err := json.Unmarshal([]byte(r.Stdout), &e); err != nil || r.Status != 0 {
		return false, fmt.Errorf("weir policy explain %s %s: exit status %d: %s", from, to, r.Status, strings.TrimSpace(r.Stderr))
	}
	return e.Verdict == "FORWARDED", nil
}

// patience is how long a client waits for an answer.
const patience = time.Second

// reaches runs a real client: redis-cli for the database, curl for the rest.
func (s *shop) reaches(ctx context.Context, from string, to service) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addr := s.hosts[to.pod].Addr4
	words := []string{"curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", fmt.Sprintf("http://%s:%d/", addr, to.port)}
	want := "200"
	if to.port == redisPort {
		words, want = []string{"redis-cli", "-h", addr, "ping"}, "PONG"
	}
	out, err := s.hosts[from].Run(ctx, words[0], words[1:]...)
	if ctx.Err() == context.DeadlineExceeded {
		return false, nil // no answer: that is how a policy drops
	}
	if err == nil && strings.TrimSpace(out) == want {
		return true, nil
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, err
	}
	return false, fmt.Errorf("%s to %s: neither an answer nor silence: %s %v", from, to, strings.TrimSpace(out), err)
}

// print shows the table and returns how many cells are not as the reference says.
func (t table) print() (wrong int) {
	const first = 24
	line := strings.Repeat(" ", first)
	for _, s := range services {
		line += pad(s.String(), width(s.String()), columnWidth(s))
	}
	say("%s%s%s", dim, line, reset)
	for _, row := range t {
		line = ""
		for i, c := range row {
			text, colour := c.show()
			line += pad(colour+text+reset, width(text), columnWidth(services[i]))
			if c != nil && c.reachable != c.reference {
				wrong++
			}
		}
		say("%s%s", pad(rowName(row), width(rowName(row)), first), line)
	}
	return wrong
}

func rowName(row []*cell) string {
	for _, c := range row {
		if c != nil {
			return c.from
		}
	}
	return ""
}

func columnWidth(s service) int { return width(s.String()) + 3 }

func (c *cell) show() (text, colour string) {
	switch {
	case c == nil:
		return ".", dim
	case c.reachable != c.reference:
		return "WRONG", yellow
	case c.reachable:
		return "yes", green
	}
	return "no", red
}

// mismatches says what is wrong in words.
func (t table) mismatches() string {
	var b strings.Builder
	for _, row := range t {
		for _, c := range row {
			if c != nil && c.reachable != c.reference {
				fmt.Fprintf(&b, "%s to %s: reachable %v, by the reference %v\n", c.from, c.to, c.reachable, c.reference)
			}
		}
	}
	return b.String()
}

// count is how many cells there are, and how many can be reached.
func (t table) count() (cells, reachable int) {
	for _, row := range t {
		for _, c := range row {
			if c == nil {
				continue
			}
			cells++
			if c.reachable {
				reachable++
			}
		}
	}
	return cells, reachable
}

// hostOf is a name's namespace.
func (s *shop) addHost(h *lab.Host) { s.hosts[h.Name] = h }
