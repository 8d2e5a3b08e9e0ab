package main

import (
	"os"
	"runtime/debug"
)

// garbage is how many percent of what is in use may be garbage before it is collected; Go's own
// is 100. Most of the heap is what the cluster is, which stays, so that twice its size would be
// for little, and least while an agent starts: then most of what it allocates is soon garbage,
// and its peak is what its limit has to be (docs/scale.md has what it gives and costs).
const (
	garbageAtStart = 20
	garbage        = 50
)

// collectAt says how often garbage is collected, unless the environment does.
func collectAt(percent int) {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(percent)
	}
}
