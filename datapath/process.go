package datapath

import (
	"regexp"
	"slices"
	"time"
)

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

// notHex separates the parts of a cgroup's path that may be a container's id.
var notHex = regexp.MustCompile(`[^0-9a-f]+`)

// ContainerID is the runtime's id of the process's container, "" if its cgroup has none.
func (p *Process) ContainerID() string {
	if p == nil {
		return ""
	}
	for _, part := range slices.Backward(notHex.Split(p.Cgroup, -1)) {
		if len(part) == 64 {
			return part
		}
	}
	return ""
}
