package hubble

import (
	"bytes"
	"strings"
	"sync"
)

// locked is what a process writes while it is read.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// lines are those that are whole.
func (l *locked) lines() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.buf.String()
	return text[:strings.LastIndexByte(text, '\n')+1]
}
