package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weirnet/weir/controlplane/api"
)

// owedDir is below the state directory: a file for each address that a DEL could not give
// back, because the configuration of IPAM is wrong or its plugin gone. The pod goes all the
// same; the next ADD or GC of its network, which needs the configuration mended, gives the
// address back.
const owedDir = "owed"

// owed is such an address's attachment.
type owed struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// owe notes that at holds addresses still; why is said where the runtime logs.
func owe(c *config, at api.Attachment, why error) error {
	dir := filepath.Join(c.StateDir, owedDir)
	text, err := json.Marshal(owed{Network: c.Name, ContainerID: at.ContainerID, IfName: at.IfName})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return errors.Join(why, err)
	}
	unlock, err := lockOwed(dir)
	if err != nil {
		return errors.Join(why, err)
	}
	defer unlock()
	if err := os.WriteFile(filepath.Join(dir, HostIfName(at.ContainerID, at.IfName)), text, 0o600); err != nil {
		return errors.Join(why, err)
	}
	fmt.Fprintf(os.Stderr, "weir-cni: DEL of container %s: its addresses are not given back: %v. The next ADD of network %s does it\n", at.ContainerID, why, c.Name)
	return nil
}

// settle gives back what the network owes. It stops at the first that cannot be: what keeps
// that one keeps the others. The lock is held so long, or an address could go that the same
// attachment was given anew.
func settle(c *config) error {
	dir := filepath.Join(c.StateDir, owedDir)
	unlock, err := lockOwed(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	notes, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, note := range notes {
		path := filepath.Join(dir, note.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var o owed
		if json.Unmarshal(text, &o) == nil { // if not, a node that lost power wrote it
			if o.Network != c.Name {
				continue
			}
			if err := release(c, api.Attachment{ContainerID: o.ContainerID, IfName: o.IfName}); err != nil {
				return err
			}
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

func lockOwed(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
