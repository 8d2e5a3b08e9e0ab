package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// EnableForwarding turns IP forwarding on where it is off, in the namespace of the
// calling thread, and returns the settings it changed. A family that the kernel does
// not have is left out.
func EnableForwarding() ([]string, error) {
	var changed []string
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		path := "/proc/sys/" + key
		now, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("read %s: %w", path, err)
		}
		if strings.TrimSpace(string(now)) != "0" {
			continue
		}
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			return changed, fmt.Errorf("turn on forwarding: %w", err)
		}
		changed = append(changed, strings.ReplaceAll(key, "/", ".")+"=1")
	}
	return changed, nil
}
