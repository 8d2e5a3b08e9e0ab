package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// coloured: on a terminal that can, unless the user said no.
func coloured(w io.Writer) bool {
	return width(w) > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// width is a terminal's, 0 for anything else.
func width(w io.Writer) int {
	width, _ := size(w)
	return width
}

// size is a terminal's in characters, 0 for anything else.
func size(w io.Writer) (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}
