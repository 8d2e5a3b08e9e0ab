package main

import (
	"os"
	"runtime/debug"
)

// garbagePercent of what is in use may be garbage before it is collected; Go's own is 100. Most
// of the heap is what the cluster is, which stays, so that twice its size would be for little
// (docs/scale.md has what it gives and costs).
const garbagePercent = 50

// collectOften unless the environment says how often.
func collectOften() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(garbagePercent)
	}
}
