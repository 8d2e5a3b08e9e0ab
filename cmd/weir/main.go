// Weir asks the node's agent: what it enforces, what it let through or stopped, and why.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	do := run
	if isPlugin(os.Args[0]) {
		do = runPlugin
	}
	status := do(ctx, os.Args[1:], streams{out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(status)
}
