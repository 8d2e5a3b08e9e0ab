package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weirnet/weir/tests/bench/report"
	"github.com/weirnet/weir/tests/lab"
)

// beside has one policy change: of the cluster, of a pod that has as many policies, and by
// rules of such a pod.
func (u *update) beside(name string, t *report.Table) (failed error) {
	m, size := u.m, u.cluster.policies
	m.progress("%d policies of a pod, beside rules", size)
	pod := &update{m: m}
	var sites []*site
	defer func() {
		if pod.observer != nil {
			pod.observer.close()
		}
		for _, s := range sites {
			failed = errors.Join(failed, s.close())
		}
	}()
	for _, suffix := range []string{"p", "n"} {
		s, err := newSite(m, name+suffix, 1, lab.Options{})
		sites = append(sites, s)
		if err != nil {
			return err
		}
	}
	pod.site = sites[0]
	if err := pod.site.weir(m, size); err != nil {
		return err
	}
	var err error
	if pod.observer, err = observe(pod.site.nodes[0]); err != nil {
		return err
	}
	weir := func(u *update, send func(u *update, round int) error) func(int) (float64, error) {
		return func(round int) (float64, error) {
			one, err := u.once(change{send: send, inForce: moved}, round)
			return one.ms, err
		}
	}
	n := sites[1].nodes[0]
	by := func(sets []ruleset) func(int) (float64, error) {
		return func(int) (float64, error) { return timed(m, n, sets) }
	}
	turns := []struct {
		name string
		once func(round int) (ms float64, err error)
	}{
		{"Weir, as many of a pod here", weir(pod, func(u *update, round int) error {
			return u.site.api.Put("networkpolicies", benchPolicy(0, size, 81-round%2))
		})},
		{"Weir, as many in the cluster", weir(u, changes[0].send)},
		{"nft -f, all", by(nftables(size, "10.1.0.1", "10.1.0.2", true))},
		{"nft -f, a chain", by([]ruleset{{nft, "flush chain ip engine policy-0\nadd rule ip engine policy-0 ip saddr @peers-0 tcp dport 81 accept\n"}})},
		{"iptables-restore, all", by(iptables(size, "10.1.0.1", "10.1.0.2", false))},
		{"iptables-restore, a chain", by([]ruleset{{"iptables-legacy-restore -n < %s", "*filter\n:POLICY-0 - [0:0]\n-A POLICY-0 -s 10.64.0.1/32 -p tcp -m tcp --dport 81 -j MARK --set-xmark 0x10000/0x10000\n-A POLICY-0 -m mark --mark 0x10000/0x10000 -j RETURN\nCOMMIT\n"}})},
	}
	ms := make([][]float64, len(turns))
	for round := range m.rounds + 1 { // the first is not counted
		for i, turn := range turns {
			if m.Err() != nil {
				return m.Err()
			}
			took, err := turn.once(round)
			if err != nil {
				return fmt.Errorf("%s: %w", turn.name, err)
			}
			if round > 0 {
				ms[i] = append(ms[i], took)
			}
		}
	}
	for i, turn := range turns {
		put(t, turn.name, report.Of(ms[i], ""))
	}
	return nil
}

func timed(ctx context.Context, n *lab.Node, sets []ruleset) (ms float64, err error) {
	file := filepath.Join(n.RunDir(), "rules")
	if err := os.WriteFile(file, []byte(sets[0].text), 0o600); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", fmt.Sprintf("exec "+sets[0].command, file))
	var said strings.Builder
	cmd.Stderr = &said
	began := time.Now()
	if err := n.Start(cmd); err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, end300(said.String()))
	}
	return float64(time.Since(began).Microseconds()) / 1000, nil
}
