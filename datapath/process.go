package datapath

import "time"

// Process is a process as it was when it opened a socket; another program that it became
// by exec is another Process.
type Process struct {
	PID   uint32    // as the initial PID namespace has it
	Start time.Time // of the process, not of the program
	// Held: the socket is older than those who note who opens sockets, and this is the oldest
	// process that held it then.
	Held bool
	// What follows is "" when it is not known.
	Name       string // the thread group leader's, as in /proc/PID/comm
	Executable string // path in the mount namespace of the process
	Cgroup     string // path, as much of its end as was kept
}

// idSize is the length of a container's id, in hex digits.
const idSize = 64

// ContainerID is the runtime's id of the process's container, "" if its cgroup has none: the
// last part of its path that is neither longer nor shorter. Every record with a process asks.
func (p *Process) ContainerID() string {
	if p == nil {
		return ""
	}
	end := len(p.Cgroup)
	for i := len(p.Cgroup) - 1; i >= -1; i-- {
		if i >= 0 && isHex(p.Cgroup[i]) {
			continue
		}
		if end-(i+1) == idSize {
			return p.Cgroup[i+1 : end]
		}
		end = i
	}
	return ""
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }
