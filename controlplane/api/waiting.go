package api

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// WaitingName is a file of the state directory: why an agent that starts answers nobody yet.
const WaitingName = "waiting"

const waitingMost = 2 << 10

// SayWaiting tells those who ask an agent that does not answer yet what it waits for; nothing
// takes that back.
func SayWaiting(stateDir string, why []string) error {
	path := filepath.Join(stateDir, WaitingName)
	if len(why) > 0 {
		return os.WriteFile(path, []byte(strings.Join(why, "; ")), 0o600)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func waitingFor(stateDir string) string {
	f, err := os.Open(filepath.Join(stateDir, WaitingName))
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, waitingMost))
	return strings.Join(strings.Fields(string(text)), " ")
}
