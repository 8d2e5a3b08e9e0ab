package datapath

import (
	"regexp"
	"time"
)

// Process is a process as it was when it opened a socket; another program that it became
// by exec is another Process.
type Process struct {
	PID   uint32    // as the initial PID namespace has it
	Start time.Time // of the process, not of the program
	// What follows is "" when it is not known (any more): PID and Start alone name it.
	Name       string // the thread group leader's, as in /proc/PID/comm
	Executable string // path in the mount namespace of the process
	Cgroup     string // path, as much of its end as was kept
}

var containerID = regexp.MustCompile(`(?:^|[^0-9a-f])([0-9a-f]{64})(?:$|[^0-9a-f])`)

// ContainerID is the runtime's id of the process's container, "" if its cgroup has none.
func (p *Process) ContainerID() string {
	if p == nil {
		return ""
	}
	m := containerID.FindAllStringSubmatch(p.Cgroup, -1)
	if m == nil {
		return ""
	}
	return m[len(m)-1][1]
}
