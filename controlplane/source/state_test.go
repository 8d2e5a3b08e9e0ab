package source

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A new file that claims an object while the agent is away does not get it.
func TestDuplicateWhileAway(t *testing.T) {
	r := newRig(t)
	r.edit("b.yaml", podYAML("x", "b"))
	r.start()
	r.await("x=b")
	r.stop()
	r.edit("a.yaml", podYAML("x", "a"))
	r.start()
	r.await("x=b !a.yaml:1")
}

func TestRestart(t *testing.T) {
	r := newRig(t)
	r.edit("f.yaml", podYAML("a", "1"))
	r.edit("g.yaml", podYAML("b", "1"))
	r.start()
	before := r.await("a=1 b=1")
	r.stop()

	r.start()
	if again := r.await("a=1 b=1"); again.Revision != before.Revision {
		t.Errorf("revision %d after a restart, was %d", again.Revision, before.Revision)
	}
	r.stop()

	r.edit("f.yaml", "kind: [") // broken while away
	r.remove("g.yaml")          // removed while away
	r.start()
	broken := r.await("a=1 !f.yaml:1")
	if broken.Revision <= before.Revision {
		t.Errorf("revision %d, was %d", broken.Revision, before.Revision)
	}
	r.stop()
	r.start() // and again, from what the broken run saved
	if again := r.await("a=1 !f.yaml:1"); again.Revision != broken.Revision {
		t.Errorf("revision %d, was %d", again.Revision, broken.Revision)
	}
	r.stop()

	r.dir = t.TempDir() // another directory: nothing but the revision is kept
	r.edit("f.yaml", "kind: [")
	r.start()
	if other := r.await("!f.yaml:1"); other.Revision <= broken.Revision {
		t.Errorf("revision %d, was %d", other.Revision, broken.Revision)
	}
}

func TestState(t *testing.T) {
	r := newRig(t)
	r.edit("f.yaml", podYAML("a", "1"))
	r.start()
	for i := range 20 {
		r.replace("f.yaml", podYAML("a", fmt.Sprint(i)))
		r.sync(fmt.Sprintf("a=%d", i))
	}
	files, err := filepath.Glob(filepath.Join(r.state, "source", "*"))
	must(t, err)
	if len(files) != 2 {
		t.Errorf("state holds %q, want the index and one content", files)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info.Mode(), err)
		}
	}
	r.stop()
	for _, f := range files { // a damaged content is not used
		if strings.Contains(f, goodPrefix) {
			must(t, os.WriteFile(f, []byte(podYAML("evil", "")), 0o600))
		}
	}
	r.edit("f.yaml", "kind: [")
	r.start()
	r.await("!f.yaml:1")
	r.stop()
	must(t, os.WriteFile(filepath.Join(r.state, "source", indexName), []byte("{\"rev"), 0o600))
	r.edit("f.yaml", podYAML("a", "1"))
	r.start()
	r.await("a=1")
}

// A state directory that takes nothing is an error that stops nothing.
func TestStateFull(t *testing.T) {
	r := newRig(t)
	r.start()
	r.await("")
	must(t, os.RemoveAll(filepath.Join(r.state, "source")))
	r.edit("f.yaml", podYAML("a", "1"))
	u := r.await("a=1 !:0")
	if !strings.Contains(u.Errors[0].Message, "source state") {
		t.Errorf("error %v", u.Errors[0])
	}
	must(t, os.Mkdir(filepath.Join(r.state, "source"), 0o700))
	r.await("a=1")
}
