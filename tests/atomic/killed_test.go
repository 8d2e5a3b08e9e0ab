package atomic

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/datapath/maps"
)

var kills = flag.Int("kills", 25, "committers killed in each scene")

// committer is a process that opens a node's maps, as an agent does, and commits one state
// after the other until it is killed.
type committer struct {
	Scene     string
	Dir       string // bpffs
	Ifindexes []uint32
	Base      uint64 // epoch of the first state
	Marker    string // file; its byte is 1 in a commit
}

const committerEnv = "WEIRT_COMMITTER"

func TestMain(m *testing.M) {
	if text := os.Getenv(committerEnv); text != "" {
		fmt.Fprintln(os.Stderr, run(text))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func run(text string) error {
	var c committer
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	marker, err := mapByte(c.Marker)
	if err != nil {
		return err
	}
	s := scenes[c.Scene]
	locals := s.locals()
	for i := range locals {
		locals[i].Endpoint.Ifindex = c.Ifindexes[i]
	}
	a, b := s.states(locals)
	k, err := maps.Open(c.Dir)
	if err != nil {
		return err
	}
	fmt.Println("commits")
	for {
		next := a
		if (k.Epoch()-c.Base)&1 == 0 {
			next = b
		}
		marker[0] = 1
		if _, err := k.Commit(next); err != nil {
			return err
		}
		marker[0] = 0
		time.Sleep(300 * time.Microsecond)
	}
}

// mapByte maps the first byte of a file, so that it is seen at once.
func mapByte(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// TestKilledCommitter kills the committer anywhere, in a commit too, while packets are
// judged: each is judged by the state of its epoch whole, before the next committer has
// opened the maps and after.
func TestKilledCommitter(t *testing.T) {
	for name, s := range scenes {
		t.Run(name, func(t *testing.T) {
			f := newFlood(t, s)
			c := committer{Scene: name, Dir: f.node.Config.BPFFSDir, Base: f.base, Marker: filepath.Join(t.TempDir(), "marker")}
			for _, l := range f.locals {
				c.Ifindexes = append(c.Ifindexes, l.Endpoint.Ifindex)
			}
			if err := os.WriteFile(c.Marker, []byte{0}, 0o600); err != nil {
				t.Fatal(err)
			}
			f.survive(t, c)
		})
	}
}

func (f *flood) survive(t *testing.T, c committer) {
	t.Helper()
	marker, err := mapByte(c.Marker)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(marker)
	j := f.judge(t, 1, cpus(t)[0])
	f.judges = 1
	random, within := rand.New(rand.NewSource(1)), 0
	for range *kills {
		marker[0] = 0
		if err := c.runFor(time.Duration(random.Intn(20_000)) * time.Microsecond); err != nil {
			t.Error(err)
			break
		}
		within += int(marker[0])
		if !f.wait() {
			break
		}
	}
	f.stop()
	if err := errors.Join(<-j.done, f.checkDenials(j.tally)); err != nil {
		t.Error(err)
	}
	t.Attr("killed", fmt.Sprintf("%d committers, %d of them in a commit; %d epochs, %d packets", *kills, within, f.node.Kernel.Epoch()-f.base, j.tally.packets))
	if within == 0 {
		t.Errorf("none of %d was killed in a commit", *kills)
	}
}

// runFor runs a committer and kills it some time after its first commit began.
func (c committer) runFor(d time.Duration) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), committerEnv+"="+string(text)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	time.Sleep(d)
	if killed := cmd.Process.Kill(); killed != nil || err != nil {
		return errors.Join(err, killed, cmd.Wait())
	}
	if err := cmd.Wait(); cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
		return nil
	} else {
		return fmt.Errorf("committer after %q: %w", line, err)
	}
}
