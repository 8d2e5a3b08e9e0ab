package control

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// process is a program that ends with this one.
type process struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
}

func start(dir, program string, args ...string) (*process, error) {
	p := &process{name: program[strings.LastIndex(program, "/")+1:], ended: make(chan struct{})}
	p.log = dir + "/" + p.name + ".log"
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	p.cmd = exec.Command(program, args...)
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

// stop ends it and waits for that.
func (p *process) stop(s os.Signal) {
	if p != nil {
		_ = p.cmd.Process.Signal(s)
		<-p.ended
	}
}

func (p *process) running() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %v\n%s", p.name, p.cmd.ProcessState, p.tail())
	default:
		return nil
	}
}

// tail is the end of what it logged.
func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-4000):])
}
