package main

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// Colours, empty when the output is no terminal or NO_COLOR is set.
var bold, dim, red, green, yellow, reset string

func init() {
	st, err := os.Stdout.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 || os.Getenv("NO_COLOR") != "" {
		return
	}
	bold, dim, red, green, yellow, reset = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[33m", "\033[0m"
}

var began = time.Now()

// scene begins a part of the demo.
func scene(format string, args ...any) {
	fmt.Printf("\n%s%5.1fs  %s%s\n", bold, time.Since(began).Seconds(), fmt.Sprintf(format, args...), reset)
}

// say explains; text is indented below its scene.
func say(format string, args ...any) { fmt.Println(indent(fmt.Sprintf(format, args...))) }

// command shows what could be typed.
func command(line string) { say("%s$ %s%s", dim, line, reset) }

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		b.WriteString(strings.TrimRight("        "+line, " \n") + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// pad fills text, which may hold colours, to a width of the visible part.
func pad(text string, visible, width int) string {
	return text + strings.Repeat(" ", max(0, width-visible))
}

func width(s string) int { return utf8.RuneCountInString(s) }
