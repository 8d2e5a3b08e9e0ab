package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// What of this process is mapped from files, in KiB.
func mappedFiles(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile")
	return 0
}

// The program goes on, with less of it mapped.
func TestReleaseProgram(t *testing.T) {
	before := mappedFiles(t)
	mapped, err := releaseProgram()
	if err != nil || mapped < 10<<20 {
		t.Fatalf("%d bytes of the program, %v", mapped, err)
	}
	if after := mappedFiles(t); after > before*3/4 {
		t.Errorf("%d KiB are mapped after %d", after, before)
	}
}
