package control

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// Process is a program that ends with this one.
type Process struct {
	log   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// In is a command in a network namespace; "" is the caller's.
func In(netns, program string, args ...string) *exec.Cmd {
	if netns != "" {
		program, args = "nsenter", append([]string{"--net=/run/netns/" + netns, "--", program}, args...)
	}
	return exec.Command(program, args...)
}

// Spawn starts a command that writes to a file.
func Spawn(logfile string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{log: logfile, cmd: cmd, ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		defer close(p.ended)
		defer log.Close()
		runtime.LockOSThread() // the child dies with the thread that made it
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
	}()
	return p, <-started
}

// Pid of the command.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stop ends it and waits for that.
func (p *Process) Stop(s os.Signal) {
	if p != nil {
		_ = p.cmd.Process.Signal(s)
		<-p.ended
	}
}

// Running is an error once it ended.
func (p *Process) Running() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s: ended: %v\n%s", filepath.Base(p.log), p.cmd.ProcessState, p.Tail())
	default:
		return nil
	}
}

// Tail is the end of what it wrote.
func (p *Process) Tail() string { return Tail(p.log) }

// Tail is the end of a file.
func Tail(path string) string {
	text, _ := os.ReadFile(path)
	return string(text[max(0, len(text)-4000):])
}

// Wait for its end.
func (p *Process) Wait() { <-p.ended }
