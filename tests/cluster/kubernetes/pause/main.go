// Pause is a pod's first process: it holds the pod's namespaces, and waits to be ended.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for s := range c {
		if s != syscall.SIGCHLD {
			os.Exit(0)
		}
		for { // children of a shared process namespace are its own to reap
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
