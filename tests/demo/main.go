// Command demo shows Weir at work on a small shop: real servers and clients in network
// namespaces, attached by the CNI plugin, under ordinary manifests. Each cell of its
// tables is what a real client met and is compared with the reference verdict. The exit
// status is 0 only if all agree. It cleans up after itself, interrupted or not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weirnet/weir/tests/lab"
)

const (
	prefix = "weird-"
	run    = "/run/weird"
	limit  = 5 * time.Minute

	lockFile = "/run/.weird.lock" // not one of those that are removed
)

func main() {
	keep := flag.Bool("keep", false, "leave the shop up and say how to play with it")
	flag.Parse()
	if os.Geteuid() != 0 {
		fail(errors.New("needs root: it makes network namespaces and loads BPF programs"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := show(ctx, *keep); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "%sdemo: %v%s\n", red, err, reset)
	os.Exit(1)
}

// show plays the demo and clears the stage.
func show(ctx context.Context, keep bool) (err error) {
	bin, err := binaries()
	if err != nil {
		return err
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	node, err := lab.Up(lab.Options{Prefix: prefix, Run: run, Bin: bin})
	if err != nil {
		return err
	}
	d := &demo{shop: shop{node: node, run: run}}
	err = d.play(ctx)
	if errors.Is(ctx.Err(), context.Canceled) {
		err = errors.New("interrupted")
	} else if err != nil {
		err = fmt.Errorf("%w\nthe agent's log ends:\n%s", err, node.LogTail())
	}
	if keep && err == nil {
		d.howToPlay(bin)
	} else if down := node.Down(); down != nil {
		err = errors.Join(err, down)
	}
	if err != nil {
		return err
	}
	scene("%d cells in 5 tables, %d as the reference verdict says", d.cells, d.cells-d.wrong)
	if d.wrong > 0 {
		return fmt.Errorf("%d cells are not as the reference verdict says", d.wrong)
	}
	return nil
}

// lock keeps a second run off the namespaces of this one. A shop that was left up is not
// locked: the next run replaces it.
func lock() (unlock func(), err error) {
	f, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another demo is running on this machine: wait for it, or interrupt it")
	}
	return func() { f.Close() }, nil
}

// binaries is the directory of this program: the others are built beside it.
func binaries() (string, error) {
	self, err := os.Executable()
	return filepath.Dir(self), err
}

func (d *demo) howToPlay(bin string) {
	scene("It is still up. To play with it:")
	say(`W="%s/weir --state-dir %s"
$W status; $W endpoints; $W policy list
$W flows -f                                      # and meanwhile:
ip netns exec %sshop-cart redis-cli -h %s ping
ip netns exec %sintruder-visitor curl -m 1 http://%s/
$EDITOR %s/web.yaml     # edits apply as they are saved
make clean                                       # the end of it`,
		bin, d.node.StateDir(), prefix, d.hosts["shop/database"].Addr4, prefix, d.hosts["shop/web"].Addr4, d.node.Manifests())
}
