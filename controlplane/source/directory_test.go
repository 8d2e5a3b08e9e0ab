package source

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weirnet/weir/controlplane/policy"
)

const patience = 20 * time.Second

// rig is a running Directory and the updates it made.
type rig struct {
	t          *testing.T
	dir, state string
	d          *Directory
	stop       func()

	mu      sync.Mutex
	updates []Update
	news    chan struct{} // cap 1: an update came
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), state: t.TempDir()}
	return r
}

// start a Directory on what is there; the end of the test stops it.
func (r *rig) start() *rig {
	r.t.Helper()
	d, err := NewDirectory(r.dir, r.state, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	r.d, r.news, r.updates = d, make(chan struct{}, 1), nil
	go func() { ended <- d.Run(ctx, r.take) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
	return r
}

func (r *rig) take(u Update) {
	r.mu.Lock()
	r.updates = append(r.updates, u)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *rig) all() []Update {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.updates)
}

func (r *rig) last() Update {
	if all := r.all(); len(all) > 0 {
		return all[len(all)-1]
	}
	return Update{Cluster: newCluster()}
}

// await an update, by events alone, of which text says what is wanted.
func (r *rig) await(want string) Update {
	r.t.Helper()
	limit := time.After(patience)
	for {
		u := r.last()
		if u.Revision > 0 && text(u) == want {
			return u
		}
		select {
		case <-r.news:
		case <-limit:
			r.t.Fatalf("have\n%s\nwant\n%s", text(u), want)
		}
	}
}

// sync and compare.
func (r *rig) sync(want string) Update {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	revision, err := r.d.Sync(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	u := r.last()
	if u.Revision != revision {
		r.t.Fatalf("sync says revision %d, the last update was %d", revision, u.Revision)
	}
	if got := text(u); got != want {
		r.t.Fatalf("have\n%s\nwant\n%s", got, want)
	}
	return u
}

// text of an update: pods with their label v, then the errors' files and documents.
func text(u Update) string {
	var out []string
	for _, p := range u.Cluster.Pods {
		out = append(out, p.Name+"="+p.Labels["v"])
	}
	slices.Sort(out)
	for _, e := range u.Errors {
		out = append(out, fmt.Sprintf("!%s:%d", e.File, e.Document))
	}
	return strings.Join(out, " ")
}

func podYAML(name, v string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {v: '%s'}}\n---\n", name, v)
}

// replace a file by rename, as careful writers do.
func (r *rig) replace(name, text string) {
	r.t.Helper()
	tmp := filepath.Join(r.dir, "."+name+".tmp")
	must(r.t, os.WriteFile(tmp, []byte(text), 0o644))
	must(r.t, os.Rename(tmp, filepath.Join(r.dir, name)))
}

// edit a file in place.
func (r *rig) edit(name, text string) {
	r.t.Helper()
	must(r.t, writeFile(r.dir, name, text))
}

func writeFile(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
}

func (r *rig) remove(name string) {
	r.t.Helper()
	must(r.t, os.Remove(filepath.Join(r.dir, name)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestChanges(t *testing.T) {
	r := newRig(t)
	r.edit("a.yaml", podYAML("a", "1"))
	r.start()
	first := r.await("a=1")
	if first.Revision != 1 || len(r.all()) != 1 {
		t.Errorf("first update has revision %d, %d updates", first.Revision, len(r.all()))
	}
	r.replace("a.yaml", podYAML("a", "2"))
	r.await("a=2")
	r.edit("a.yaml", podYAML("a", "3"))
	r.await("a=3")
	r.replace("b.yml", podYAML("b", "1"))
	r.replace("c.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}`)
	r.await("a=3 b=1 c=")
	r.edit("b.yml", "")
	r.await("a=3 c=")
	r.remove("a.yaml")
	u := r.await("c=")
	for i, u := range r.all() {
		if i > 0 && u.Revision <= r.all()[i-1].Revision {
			t.Errorf("revision %d after %d", u.Revision, r.all()[i-1].Revision)
		}
	}
	if again := r.sync("c="); again.Revision != u.Revision {
		t.Errorf("revision %d without a change, was %d", again.Revision, u.Revision)
	}
	if ns := u.Cluster.Namespaces["default"]; ns == nil || ns.Labels[corev1.LabelMetadataName] != "default" {
		t.Errorf("namespace of the pod: %v", ns)
	}
	r.edit("c.json", `{"apiVersion":"v1", "kind":"Pod","metadata":{"name":"c"}}`)
	if again := r.sync("c="); again.Revision != u.Revision {
		t.Errorf("revision %d for the same objects, was %d", again.Revision, u.Revision)
	}
}

func TestNamesOfFiles(t *testing.T) {
	r := newRig(t)
	r.edit(".hidden.yaml", podYAML("hidden", ""))
	r.edit("a.txt", podYAML("txt", ""))
	r.edit("a.yaml~", podYAML("backup", ""))
	must(t, os.Mkdir(filepath.Join(r.dir, "folder.yaml"), 0o755))
	must(t, os.WriteFile(filepath.Join(r.dir, "folder.yaml", "a.yaml"), []byte(podYAML("below", "")), 0o644))
	r.start()
	r.sync("")
	must(t, os.Symlink("/nowhere", filepath.Join(r.dir, "link.yaml")))
	r.sync("!link.yaml:0")
}

// A file replaced by rename changes in one update, even if both its objects do.
func TestReplaceIsOneUpdate(t *testing.T) {
	r := newRig(t)
	both := func(i int) string { return podYAML("a", fmt.Sprint(i)) + podYAML("b", fmt.Sprint(i)) }
	r.replace("f.yaml", both(0))
	r.start()
	for i := range 200 {
		r.replace("f.yaml", both(i))
	}
	r.await("a=199 b=199")
	for _, u := range r.all() {
		a, b := pod(u.Cluster, "a"), pod(u.Cluster, "b")
		if a == nil || b == nil || a.Labels["v"] != b.Labels["v"] {
			t.Fatalf("half an update: %s", text(u))
		}
	}
}

func pod(c *policy.Cluster, name string) *policy.Pod {
	return c.Pods[types.NamespacedName{Namespace: "default", Name: name}]
}

// A file that is renamed is never seen as gone.
func TestRenamedFileStays(t *testing.T) {
	r := newRig(t)
	for i := range 50 {
		r.edit(fmt.Sprintf("other-%d.yaml", i), "")
	}
	r.replace("f0.yaml", podYAML("a", ""))
	r.start()
	r.sync("a=")
	for i := range 300 {
		must(t, os.Rename(filepath.Join(r.dir, fmt.Sprintf("f%d.yaml", i)), filepath.Join(r.dir, fmt.Sprintf("f%d.yaml", i+1))))
		if i%10 == 0 {
			r.sync("a=")
		}
	}
	r.sync("a=")
	if n := len(r.all()); n != 1 {
		t.Errorf("%d updates, the last but one %s", n, text(r.all()[n-2]))
	}
}

// A writer that has the file open is waited for: neither the emptied nor the half
// written file is seen, though both would be valid.
func TestWriterIsWaitedFor(t *testing.T) {
	r := newRig(t)
	r.edit("f.yaml", podYAML("a", "1")+podYAML("b", "1"))
	r.start()
	r.sync("a=1 b=1")
	f, err := os.OpenFile(filepath.Join(r.dir, "f.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	r.edit("g.yaml", podYAML("c", "1"))
	r.await("a=1 b=1 c=1") // others do not wait
	_, err = f.WriteString(podYAML("a", "2"))
	must(t, err)
	r.edit("g.yaml", podYAML("c", "2"))
	r.await("a=1 b=1 c=2")
	_, err = f.WriteString(podYAML("b", "2"))
	must(t, err)
	must(t, f.Close())
	r.sync("a=2 b=2 c=2")
	for _, u := range r.all() {
		if a, b := pod(u.Cluster, "a"), pod(u.Cluster, "b"); a == nil || b == nil || a.Labels["v"] != b.Labels["v"] {
			t.Errorf("half an update: %s", text(u))
		}
	}
}

// Whenever the scan comes, an edit in place is seen whole.
func TestEditInPlaceIsNeverHalf(t *testing.T) {
	r := newRig(t)
	r.edit("f.yaml", podYAML("a", "0")+podYAML("b", "0"))
	r.start()
	r.sync("a=0 b=0")
	for i := range 300 {
		f, err := os.Create(filepath.Join(r.dir, "f.yaml"))
		must(t, err)
		for _, name := range []string{"a", "b"} {
			_, err := f.WriteString(podYAML(name, fmt.Sprint(i)))
			must(t, err)
		}
		must(t, f.Close())
	}
	r.sync("a=299 b=299")
	for _, u := range r.all() {
		if a, b := pod(u.Cluster, "a"), pod(u.Cluster, "b"); a == nil || b == nil || a.Labels["v"] != b.Labels["v"] {
			t.Fatalf("half an edit: %s", text(u))
		}
	}
	t.Logf("%d updates", len(r.all()))
}

// A writer that never closes the file does not keep its content out for ever.
func TestWriterForEver(t *testing.T) {
	r := newRig(t)
	f, err := os.Create(filepath.Join(r.dir, "f.yaml"))
	must(t, err)
	defer f.Close()
	_, err = f.WriteString(podYAML("a", "1"))
	must(t, err)
	r.start()
	r.sync("a=1")
}

func TestBrokenThenMended(t *testing.T) {
	r := newRig(t)
	r.edit("f.yaml", podYAML("a", "1")+podYAML("b", "1"))
	r.edit("new.yaml", "kind: [")
	r.start()
	u := r.await("a=1 b=1 !new.yaml:1")
	if !strings.Contains(u.Errors[0].Message, "nothing of this file is enforced") {
		t.Errorf("message %q", u.Errors[0].Message)
	}
	r.edit("f.yaml", podYAML("a", "2")+"apiVersion: v1\nkind: Pod\nmetadata: {nam")
	u = r.await("a=1 b=1 !f.yaml:2 !new.yaml:1")
	if !strings.Contains(u.Errors[0].Message, "the last good content of this file stays") {
		t.Errorf("message %q", u.Errors[0].Message)
	}
	r.edit("f.yaml", podYAML("a", "2")+podYAML("b", "bad value"))
	u = r.await("a=1 b=1 !f.yaml:2 !new.yaml:1")
	r.edit("f.yaml", podYAML("a", "2")+"apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n")
	r.remove("new.yaml")
	r.await("a=2 b=")
	r.edit("f.yaml", "kind: X")
	r.await("a=2 b= !f.yaml:1")
	r.edit("f.yaml", podYAML("a", "2")+"apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n")
	r.await("a=2 b=") // by taking the change back
	must(t, os.Truncate(filepath.Join(r.dir, "f.yaml"), maxFileSize+1))
	r.await("a=2 b= !f.yaml:0")
}

func TestDuplicates(t *testing.T) {
	r := newRig(t)
	r.edit("b.yaml", podYAML("x", "b"))
	r.start()
	r.await("x=b")
	r.edit("a.yaml", podYAML("x", "a")+podYAML("w", "a"))
	u := r.await("w=a x=b !a.yaml:1") // the first enforced stays, the rest of the file counts
	if file, document, ok := u.Place("Pod", types.NamespacedName{Namespace: "default", Name: "w"}); !ok || file != "a.yaml" || document != 2 {
		t.Errorf("w is in %q document %d", file, document)
	}
	if e := u.Errors[0]; e.Object != "Pod default/x" || !strings.Contains(e.Message, `"b.yaml" document 1`) {
		t.Errorf("error %v", e)
	}
	r.edit("b.yaml", podYAML("x", "b2"))
	r.await("w=a x=b2 !a.yaml:1")
	r.stop()
	r.start()
	r.await("w=a x=b2 !a.yaml:1") // across restarts
	must(t, os.Rename(filepath.Join(r.dir, "b.yaml"), filepath.Join(r.dir, "z.yaml")))
	r.await("w=a x=b2 !a.yaml:1") // under another name
	r.remove("z.yaml")
	r.await("w=a x=a") // the loser applies
	r.edit("a.yaml", podYAML("x", "other")+podYAML("x", "a"))
	r.await("x=a !a.yaml:1") // in one file too: the document that was enforced
	r.remove("a.yaml")
	r.await("")
}

// ConfigMap volumes: the files are links through ..data, which is swapped.
func TestConfigMap(t *testing.T) {
	r := newRig(t)
	generation := func(i int) {
		t.Helper()
		folder := fmt.Sprintf("..%d", i)
		must(t, os.Mkdir(filepath.Join(r.dir, folder), 0o755))
		for _, name := range []string{"a", "b"} {
			must(t, os.WriteFile(filepath.Join(r.dir, folder, name+".yaml"), []byte(podYAML(name, fmt.Sprint(i))), 0o644))
		}
		must(t, os.Symlink(folder, filepath.Join(r.dir, "..tmp")))
		must(t, os.Rename(filepath.Join(r.dir, "..tmp"), filepath.Join(r.dir, "..data")))
	}
	generation(1)
	for _, name := range []string{"a.yaml", "b.yaml"} {
		must(t, os.Symlink("..data/"+name, filepath.Join(r.dir, name)))
	}
	r.start()
	r.await("a=1 b=1")
	for i := range 50 {
		generation(i + 2)
	}
	r.await("a=51 b=51")
	for _, u := range r.all() {
		if a, b := pod(u.Cluster, "a"), pod(u.Cluster, "b"); a.Labels["v"] != b.Labels["v"] {
			t.Errorf("half a swap: %s", text(u))
		}
	}
}

func TestDirectoryGoesAndComes(t *testing.T) {
	r := newRig(t)
	r.dir = filepath.Join(r.dir, "d")
	must(t, os.Mkdir(r.dir, 0o755))
	r.edit("f.yaml", podYAML("a", "1"))
	r.start()
	r.await("a=1")
	must(t, os.Rename(r.dir, r.dir+".away"))
	u := r.sync("a=1 !:0")
	if !strings.Contains(u.Errors[0].Message, "no such file or directory") {
		t.Errorf("error %v", u.Errors[0])
	}
	must(t, os.Mkdir(r.dir, 0o755))
	r.edit("f.yaml", podYAML("a", "2"))
	r.await("a=2")
	r.edit("f.yaml", podYAML("a", "3"))
	r.await("a=3")
	if _, err := NewDirectory(r.dir+"/none", r.state, nil); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a directory that is not there: %v", err)
	}
	if _, err := NewDirectory(filepath.Join(r.dir, "f.yaml"), r.state, nil); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}
}

func TestManyFiles(t *testing.T) {
	const n = 2000
	r := newRig(t)
	for i := range n {
		r.edit(fmt.Sprintf("%d.yaml", i), fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p%d, namespace: n%d}\n"+
			"spec: {podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]}\n", i, i%50))
	}
	began := time.Now()
	r.start()
	r.sync("")
	first := time.Since(began)
	u := r.last()
	if len(u.Cluster.NetworkPolicies) != n || len(u.Cluster.Namespaces) != 50 || len(u.Errors) > 0 {
		t.Fatalf("%d policies in %d namespaces, errors %v", len(u.Cluster.NetworkPolicies), len(u.Cluster.Namespaces), u.Errors)
	}
	r.replace("a.yaml", podYAML("a", "0"))
	r.await("a=0")
	time.Sleep(stampGrain) // the files are old
	r.sync("a=0")
	began = time.Now()
	r.replace("a.yaml", podYAML("a", "1"))
	r.await("a=1")
	change := time.Since(began)
	t.Logf("first %v, one change %v", first, change)
	if first > 10*time.Second || change > time.Second {
		t.Errorf("first %v, one change %v", first, change)
	}
	if got := len(slices.Collect(maps.Keys(r.last().Cluster.NetworkPolicies))); got != n {
		t.Errorf("%d policies", got)
	}
}
