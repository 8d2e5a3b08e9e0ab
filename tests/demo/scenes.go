package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/weirnet/weir/controlplane/api"
	"github.com/weirnet/weir/tests/lab"
)

// demo is a run: the shop, and the account of what was checked.
type demo struct {
	shop
	cells, wrong int
	last         table // the newest
}

// play runs the scenes in order. The first error ends it; wrong cells are counted.
func (d *demo) play(ctx context.Context) error {
	for _, scene := range []func(context.Context) error{
		d.bringUp, d.noPolicy, d.defaultDeny, d.shopPolicies, d.flows, d.explain, d.cut, d.headless,
	} {
		if err := scene(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func (d *demo) bringUp(ctx context.Context) error {
	scene("A node, its agent, and a shop of five pods")
	say("weir-agent reads a directory of manifests; weir-cni attaches each pod; nginx and redis serve.")
	for _, file := range []string{"namespaces.yaml", "pods.yaml"} {
		if err := d.node.Write(file, manifest(file)); err != nil {
			return err
		}
	}
	if err := d.node.StartAgent(ctx); err != nil {
		return err
	}
	return d.open(ctx)
}

func (d *demo) noPolicy(ctx context.Context) error {
	scene("No policy: everybody reaches everything")
	return d.compare(ctx)
}

func (d *demo) defaultDeny(ctx context.Context) error {
	scene("A default deny for namespace shop")
	return d.applied(ctx, "default-deny.yaml")
}

func (d *demo) shopPolicies(ctx context.Context) error {
	scene("The shop's policies")
	return d.applied(ctx, policies...)
}

// applied writes manifests, waits until they are enforced, and shows the table.
func (d *demo) applied(ctx context.Context, files ...string) error {
	for _, file := range files {
		if err := d.node.Write(file, manifest(file)); err != nil {
			return err
		}
		first, _, _ := strings.Cut(manifest(file), "\n")
		say("%-18s %s%s%s", file, dim, first, reset)
	}
	began := time.Now()
	if err := d.node.Wait(ctx); err != nil {
		return err
	}
	say("enforced %d ms after the last file was saved", time.Since(began).Milliseconds())
	return d.compare(ctx)
}

// compare asks the reference and real clients about every cell, and prints both as one.
func (d *demo) compare(ctx context.Context) error {
	t := newTable(clients)
	if err := t.consult(ctx, &d.shop); err != nil {
		return err
	}
	return d.show(ctx, t)
}

// show probes a table whose reference verdicts are known.
func (d *demo) show(ctx context.Context, t table) error {
	if err := t.probe(ctx, &d.shop); err != nil {
		return err
	}
	wrong := t.print()
	cells, reachable := t.count()
	d.cells, d.wrong, d.last = d.cells+cells, d.wrong+wrong, t
	say("%d of %d reachable; %d as the reference verdict says", reachable, cells, cells-wrong)
	if wrong > 0 {
		say("%s%s%s", yellow, t.mismatches(), reset)
	}
	return nil
}

func (d *demo) flows(ctx context.Context) error {
	scene("The flows behind it, and the rule that decided each")
	for _, args := range [][]string{
		{"flows", "--pod", "shop/database", "--verdict", "forwarded", "--last", "4"},
		{"flows", "--pod", "intruder/visitor", "--verdict", "dropped", "--last", "4"},
	} {
		if err := d.weir(ctx, args...); err != nil {
			return err
		}
	}
	return d.recorded(ctx)
}

// recorded looks for the record of each cell of the last table: both ends, the port, the
// verdict and a rule of the epoch in force.
func (d *demo) recorded(ctx context.Context) error {
	var status api.Status
	if err := json.Unmarshal([]byte(d.node.Weir(ctx, "status", "-o", "json").Stdout), &status); err != nil {
		return fmt.Errorf("weir status -o json: %w", err)
	}
	flows, err := d.node.Flows(ctx, "--last", "10000")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, f := range flows {
		x, err := f.Extension()
		if err != nil {
			return err
		}
		_, port := f.Port()
		if x.Epoch == status.Epoch && (x.Egress != nil || x.Ingress != nil) {
			seen[fmt.Sprint(f.IP.Source, f.Source, f.IP.Destination, f.Destination, port, f.Verdict == "FORWARDED")] = true
		}
	}
	var missing []string
	for _, row := range d.last {
		for _, c := range row {
			if c != nil && !seen[d.key(c)] {
				missing = append(missing, c.from+" to "+c.to.String())
			}
		}
	}
	cells, _ := d.last.count()
	say("the log holds %d of the table's %d tries with both ends and the rule that decided", cells-len(missing), cells)
	if len(missing) > 0 {
		return fmt.Errorf("no flow record of %s", strings.Join(missing, ", "))
	}
	return nil
}

func (d *demo) key(c *cell) string {
	from, to := d.hosts[c.from], d.hosts[c.to.pod]
	return fmt.Sprint(from.Addr4, d.end(c.from), to.Addr4, d.end(c.to.pod), c.to.port, c.reachable)
}

// end is how the log names a row; the outside has no name there.
func (d *demo) end(name string) lab.FlowEnd {
	namespace, pod, _ := strings.Cut(name, "/")
	if pod == "" {
		return lab.FlowEnd{}
	}
	return lab.FlowEnd{Namespace: namespace, PodName: pod}
}

func (d *demo) explain(ctx context.Context) error {
	scene("Why the intruder does not reach the database, though it bears the label app=cart")
	return d.weir(ctx, "policy", "explain", "--from", "intruder/visitor", "--to", "shop/database", "--port", "6379/tcp")
}

// weir shows a command and what it prints.
func (d *demo) weir(ctx context.Context, args ...string) error {
	command("weir " + strings.Join(args, " "))
	r := d.node.Weir(ctx, args...)
	if r.Status != 0 {
		return fmt.Errorf("weir %s: exit status %d: %s", strings.Join(args, " "), r.Status, strings.TrimSpace(r.Stderr))
	}
	if strings.TrimSpace(r.Stdout) == "" {
		return fmt.Errorf("weir %s: printed nothing", strings.Join(args, " "))
	}
	say("%s", r.Stdout)
	return nil
}

// cutWithin is how soon after the edit the last answer must have come.
const cutWithin = time.Second

func (d *demo) cut(ctx context.Context) error {
	scene("A policy edit cuts a connection that is open")
	cart, database := d.hosts["shop/cart"], d.hosts["shop/database"]
	p, err := startPings(cart, database)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := p.await(25); err != nil {
		return err
	}
	say("redis-cli in shop/cart asks PING over one connection, 50 times a second: %d answers so far", p.state().count)
	edited := strings.Replace(manifest("database.yaml"), "              app: cart", "              app: reporting", 1)
	say("database.yaml: %s- app: cart%s  %s+ app: reporting%s", red, reset, green, reset)
	saved := time.Now()
	if err := d.node.Write("database.yaml", edited); err != nil {
		return err
	}
	last, err := p.awaitSilence(time.Second, 5*time.Second)
	if err != nil {
		return err
	}
	after := last.Sub(saved)
	say("no answer later than %d ms after the file was saved; silence since (%d answers in all)", max(0, after.Milliseconds()), p.state().count)
	if after > cutWithin {
		return fmt.Errorf("the connection was cut only after %v", after)
	}
	for _, kind := range []string{"revoked", "denied"} {
		if err := d.weir(ctx, "flows", "--pod", "shop/cart", "--port", "6379", "--kind", kind, "--last", "1"); err != nil {
			return err
		}
	}
	say("The file is put back; the same connection goes on:")
	if err := d.node.Apply(ctx, "database.yaml", manifest("database.yaml")); err != nil {
		return err
	}
	if err := p.await(3); err != nil {
		return err
	}
	say("%d answers, over one connection", p.state().count)
	return p.unbroken()
}

// unbroken is an error if redis-cli ever said anything but PONG: it would on a reconnect.
func (p *pings) unbroken() error {
	if other := p.state().other; other != "" {
		return errors.New("redis-cli: " + other)
	}
	return nil
}

// headless kills the agent, looks, and starts it again.
func (d *demo) headless(ctx context.Context) error {
	scene("The agent is killed (SIGKILL); enforcement goes on")
	p, err := startPings(d.hosts["shop/cart"], d.hosts["shop/database"])
	if err != nil {
		return err
	}
	defer p.stop()
	t := newTable(clients)
	if err := t.consult(ctx, &d.shop); err != nil { // while there is somebody to ask
		return err
	}
	if err := d.node.KillAgent(); err != nil {
		return err
	}
	if r := d.node.Weir(ctx, "status"); r.Status == 0 {
		return errors.New("weir status answers although the agent is dead")
	}
	if err := d.show(ctx, t); err != nil {
		return err
	}
	scene("It starts again and adopts what runs; nothing changes")
	if err := d.node.StartAgent(ctx); err != nil {
		return err
	}
	if err := d.node.Wait(ctx); err != nil {
		return err
	}
	if err := d.compare(ctx); err != nil {
		return err
	}
	if err := p.await(3); err != nil {
		return err
	}
	s := p.state()
	say("meanwhile one redis connection had %d answers, never more than %d ms apart", s.count, s.gap.Milliseconds())
	if s.gap > time.Second {
		return fmt.Errorf("an open connection was silent for %v", s.gap)
	}
	return p.unbroken()
}
