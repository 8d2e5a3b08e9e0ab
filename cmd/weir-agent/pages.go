package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseProgram lets go of the pages of the program itself, and returns how many bytes it mapped.
// Half of them were for the start alone, loading programs and reading the kernel's types; the others
// come back from the page cache when they are used.
func releaseProgram() (mapped uintptr, err error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line) // FROM-TO PERMISSIONS OFFSET DEVICE INODE PATH
		if len(fields) != 6 || fields[5] != program || fields[1] != "r-xp" && fields[1] != "r--p" {
			continue // what was written to is nowhere else
		}
		first, last, _ := strings.Cut(fields[0], "-")
		from, err := strconv.ParseUint(first, 16, 64)
		if err != nil {
			return mapped, err
		}
		to, err := strconv.ParseUint(last, 16, 64)
		if err != nil {
			return mapped, err
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED); errno != 0 {
			return mapped, fmt.Errorf("release %s of %s: %w", fields[0], program, errno)
		}
		mapped += uintptr(to - from)
	}
	return mapped, nil
}
