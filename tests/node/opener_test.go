package node

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An opener is this test's binary again: a process of a pod that takes one step after the
// other, each a command line, and writes for each who it was then, as /proc has it.
const openerCgroup = "WEIRT_OPENER_CGROUP"

// witness is a process at a step.
type witness struct {
	Step  string
	PID   uint32
	Name  string
	Exe   string
	Ticks uint64 // /proc/PID/stat's starttime
	Port  int    // of the step's socket
	Err   string
}

// takeSteps: sockets NAME=FD are inherited.
//
//	socket NAME tcp|udp        bind NAME ADDR     listen NAME     accept NAME
//	connect NAME ADDR          send NAME [ADDR]   close NAME      wait
//	serve NAME                 say one's PID to whoever comes, until nobody does for five seconds
//	child STEPS...             the rest, by a child that inherits all sockets; then go on
//	exec FILE                  go on as another program
//	thread                     go on on another thread
//
// Steps of a child are separated by commas.
func takeSteps(steps []string, out io.Writer) error {
	if dir := os.Getenv(openerCgroup); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
	}
	sockets := map[string]int{}
	for _, pair := range strings.Fields(os.Getenv("WEIRT_SOCKETS")) {
		name, fd, _ := strings.Cut(pair, "=")
		sockets[name], _ = strconv.Atoi(fd)
	}
	for i, step := range steps {
		w, err := whoami(step)
		if err != nil {
			return err
		}
		f := strings.Fields(step)
		switch f[0] {
		case "wait": // to be told to go on
			if err := json.NewEncoder(out).Encode(w); err != nil {
				return err
			}
			if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
				return nil
			}
			continue
		case "exec":
			return becomeAnother(f[1], steps[i+1:], sockets)
		case "thread":
			err = onThread(func() error { return takeSteps(steps[i+1:], out) }, sockets)
			return err
		case "child":
			err = haveChild(strings.Split(strings.TrimPrefix(step, "child "), ", "), sockets, out)
		default:
			err = use(sockets, f)
		}
		if err != nil {
			w.Err = err.Error()
		}
		if len(f) > 1 {
			w.Port = portOf(sockets[f[1]])
		}
		if err := json.NewEncoder(out).Encode(w); err != nil {
			return err
		}
	}
	return nil
}

func whoami(step string) (w witness, err error) {
	w = witness{Step: step, PID: uint32(os.Getpid())}
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return w, err
	}
	w.Name = strings.TrimSuffix(string(name), "\n")
	if w.Exe, err = os.Readlink("/proc/self/exe"); err != nil {
		return w, err
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return w, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	w.Ticks, err = strconv.ParseUint(fields[19], 10, 64)
	return w, err
}

func use(sockets map[string]int, f []string) error {
	name := f[1]
	fd := sockets[name]
	to := func() unix.Sockaddr { return (&talker{domain: unix.AF_INET}).sockaddr(f[2]) }
	switch f[0] {
	case "socket":
		kind := unix.SOCK_STREAM
		if f[2] == "udp" {
			kind = unix.SOCK_DGRAM
		}
		fd, err := unix.Socket(unix.AF_INET, kind, 0)
		if err != nil {
			return err
		}
		sockets[name] = fd
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	case "bind":
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Bind(fd, to()))
	case "listen":
		return unix.Listen(fd, 16)
	case "accept":
		got, _, err := unix.Accept(fd)
		if err != nil {
			return err
		}
		_, err = unix.Write(got, []byte("hello"))
		return errors.Join(err, unix.Close(got))
	case "serve":
		return serve(fd)
	case "answer":
		b := make([]byte, 64)
		_, from, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return err
		}
		return unix.Sendto(fd, []byte("hello"), 0, from)
	case "connect":
		return unix.Connect(fd, to())
	case "send":
		if len(f) > 2 {
			return unix.Sendto(fd, []byte("x"), 0, to())
		}
		_, err := unix.Write(fd, []byte("x"))
		return err
	case "hear":
		_, err := unix.Read(fd, make([]byte, 64))
		return err
	case "close":
		delete(sockets, name)
		return unix.Close(fd)
	}
	return fmt.Errorf("no step %q", f)
}

// serve ends when nobody comes any more.
func serve(fd int) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	me := []byte(strconv.Itoa(os.Getpid()))
	for {
		if kind == unix.SOCK_DGRAM {
			_, from, err := unix.Recvfrom(fd, make([]byte, 64), 0)
			if err != nil {
				return nil
			}
			if err := unix.Sendto(fd, me, 0, from); err != nil {
				return err
			}
			continue
		}
		got, _, err := unix.Accept(fd)
		if err != nil {
			return nil
		}
		if _, err := unix.Write(got, me); err != nil {
			return err
		}
		unix.Close(got)
	}
}

func portOf(fd int) int {
	if sa, err := unix.Getsockname(fd); fd != 0 && err == nil {
		if sa, ok := sa.(*unix.SockaddrInet4); ok {
			return sa.Port
		}
	}
	return 0
}

func environ(sockets map[string]int) []string {
	var pairs []string
	for name, fd := range sockets {
		pairs = append(pairs, fmt.Sprintf("%s=%d", name, fd))
	}
	return append(os.Environ(), "WEIRT_SOCKETS="+strings.Join(pairs, " "))
}

func becomeAnother(file string, steps []string, sockets map[string]int) error {
	return unix.Exec(file, append([]string{file}, steps...), environ(sockets))
}

// haveChild forks and execs: Go has no fork alone. The child has the parent's sockets.
func haveChild(steps []string, sockets map[string]int, out io.Writer) error {
	binary, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, steps...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	theirs := map[string]int{}
	for name, fd := range sockets {
		theirs[name] = 3 + len(cmd.ExtraFiles)
		copied, err := unix.Dup(fd)
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(copied), name))
	}
	cmd.Env = environ(theirs)
	return cmd.Run()
}

func onThread(f func() error, sockets map[string]int) error {
	os.Setenv("WEIRT_SOCKETS", strings.TrimPrefix(environ(sockets)[len(os.Environ())], "WEIRT_SOCKETS="))
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		// A name of its own, as workers have: the process keeps its.
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(bytePointer("worker")), 0, 0, 0); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// openers are the steps of a running opener.
type opener struct {
	e    *env
	in   io.WriteCloser
	out  *bufio.Scanner
	past []witness
	end  func() // waits until it has ended
}

func (e *env) opener(host, cgroup string, steps ...string) *opener {
	e.t.Helper()
	binary, err := os.Executable()
	e.must("find this binary", err)
	cmd := exec.Command(binary, steps...)
	cmd.Env = append(os.Environ(), openerCgroup+"="+cgroup)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	e.must("pipe", err)
	out, err := cmd.StdoutPipe()
	e.must("pipe", err)
	e.must("start", e.host(host).Start(cmd))
	end := sync.OnceFunc(func() { in.Close(); _ = cmd.Wait() })
	e.t.Cleanup(func() { _ = cmd.Process.Kill(); end() })
	return &opener{e: e, in: in, out: bufio.NewScanner(out), end: end}
}

// until reads up to a step.
func (o *opener) until(step string) witness {
	o.e.t.Helper()
	for o.out.Scan() {
		var w witness
		o.e.must("read "+o.out.Text(), json.Unmarshal(o.out.Bytes(), &w))
		o.past = append(o.past, w)
		if w.Err != "" {
			o.e.t.Fatalf("%s: %s", w.Step, w.Err)
		}
		if w.Step == step {
			return w
		}
	}
	o.e.t.Fatalf("the opener ended before %q: %+v", step, o.past)
	return witness{}
}

func (o *opener) goOn() { _, _ = o.in.Write([]byte("x")) }

// started is when a process started, by its ticks.
func started(ticks uint64) time.Time {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Now().Add(time.Duration(ticks)*10*time.Millisecond - time.Duration(ts.Nano()))
}

// openerAs starts an opener with a PID of the test's choice, 0 = any.
func (e *env) openerAs(pid int, host, cgroup string, steps ...string) *opener {
	e.t.Helper()
	if pid == 0 {
		return e.opener(host, cgroup, steps...)
	}
	e.eventually("the PID is free", 5*time.Second, func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	out, in, err := os.Pipe()
	e.must("pipe", err)
	binary, err := os.Executable()
	e.must("find this binary", err)
	e.must("clone", e.host(host).Do(func() error {
		return cloneAs(pid, int(in.Fd()), append([]string{binary}, steps...), append(os.Environ(), openerCgroup+"="+cgroup))
	}))
	in.Close()
	e.t.Cleanup(func() { _, _ = unix.Wait4(pid, nil, 0, nil); out.Close() })
	return &opener{e: e, in: nopWriter{}, out: bufio.NewScanner(out)}
}

type nopWriter struct{}

func (nopWriter) Write(b []byte) (int, error) { return len(b), nil }
func (nopWriter) Close() error                { return nil }

// cloneArgs is the kernel's struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// cloneAs forks, as a PID, and execs with its output to a file descriptor. The child does
// nothing but system calls: it has no other thread of the runtime's.
func cloneAs(pid, out int, argv, env []string) error {
	path := bytePointer(argv[0])
	args, vars := pointers(argv), pointers(env)
	tid := int32(pid)
	c := &cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTID: uint64(uintptr(unsafe.Pointer(&tid))), setTIDSize: 1}
	is, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(c)), unsafe.Sizeof(*c), 0)
	if is == 0 && errno == 0 {
		unix.RawSyscall(unix.SYS_DUP3, uintptr(out), 1, 0)
		unix.RawSyscall(unix.SYS_EXECVE, uintptr(path), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&vars[0])))
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
	runtime.KeepAlive(args)
	runtime.KeepAlive(vars)
	if errno != 0 {
		return errno
	}
	return nil
}

func pointers(texts []string) []unsafe.Pointer {
	var out []unsafe.Pointer
	for _, text := range texts {
		out = append(out, bytePointer(text))
	}
	return append(out, nil)
}

func bytePointer(s string) unsafe.Pointer { return unsafe.Pointer(&append([]byte(s), 0)[0]) }
