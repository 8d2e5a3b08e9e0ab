package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirnet/weir/tests/bench/report"
)

// asBench has this binary be the command.
const asBench = "WEIR_BENCH"

func TestMain(m *testing.M) {
	if os.Getenv(asBench) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func bench(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append(args, "-bin", "../../bin")...)
	cmd.Env = append(os.Environ(), asBench+"=1")
	return cmd
}

// traces are what runs have in the kernel and in the file system.
func traces(t *testing.T) (out []string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/weirt-bench-*", "/run/weirt-bench-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/run/weirt-bench-") {
			out = append(out, "mount "+strings.Fields(line)[4])
		}
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range commands {
		if text, _ := os.ReadFile(c); bytes.Contains(text, []byte("/run/weirt-bench-")) {
			out = append(out, "process "+string(bytes.ReplaceAll(text, []byte{0}, []byte(" "))))
		}
	}
	return out
}

// TestInterrupt interrupts each section in its midst.
func TestInterrupt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, s := range sections() {
		t.Run(s.name, func(t *testing.T) {
			if left := traces(t); len(left) > 0 {
				t.Fatalf("another run is under way, or one left: %q", left)
			}
			dir := t.TempDir()
			page := filepath.Join(dir, "page.md")
			earlier := &report.Report{Sections: []*report.Section{{Name: s.name, Title: "as it was", Run: &report.Run{Commit: "earlier"}}}}
			if err := earlier.Write(page); err != nil {
				t.Fatal(err)
			}
			was, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			cmd := bench("-only", s.name, "-out", page)
			said, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(said)
			for lines.Scan() && !strings.Contains(lines.Text(), " "+s.name+": ") {
			}
			time.Sleep(4 * time.Second)
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			var rest []string
			for lines.Scan() {
				rest = append(rest, lines.Text())
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it says that all went well")
			}
			t.Logf("ended after %v: %q", time.Since(began).Round(time.Millisecond), rest)
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			if !slices.ContainsFunc(rest, func(l string) bool { return strings.Contains(l, "interrupted in section "+s.name) }) {
				t.Error("it does not say what was interrupted")
			}
			if left := traces(t); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if is, _ := os.ReadFile(page); !bytes.Equal(was, is) {
				t.Errorf("the page is another:\n%s", is)
			}
		})
	}
}

// TestMeasuresNothing changes no page.
func TestMeasuresNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, c := range []struct{ match, want string }{{"(", "-match: "}, {"nobody", `-match "nobody" names nothing of this section`}} {
		page := filepath.Join(t.TempDir(), "page.md")
		out, err := bench("-only", "packets", "-match", c.match, "-out", page).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("-match %q: %v: %s", c.match, err, out)
		}
		if _, err := os.Stat(page); err == nil {
			t.Errorf("-match %q: a page is written", c.match)
		}
	}
}

func TestNotRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir, err := os.MkdirTemp("", "weirt-bench-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self := filepath.Join(dir, "bench")
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(dir, "page.md")
	cmd := exec.Command(self, "-out", page)
	cmd.Env, cmd.Dir = append(os.Environ(), asBench+"=1"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "run it as root") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(page); err == nil {
		t.Error("a page is written")
	}
}
