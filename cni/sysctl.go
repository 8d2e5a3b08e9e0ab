package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setting is one sysctl of one interface.
type setting struct{ key, value string }

// ipv6Settings are an interface's when its pod has an IPv6 address, or has none.
// Nobody advertises routers on a pod's link and its addresses are unique by IPAM.
func ipv6Settings(has6 bool) []setting {
	disable := "1"
	if has6 {
		disable = "0"
	}
	return []setting{{"accept_ra", "0"}, {"accept_dad", "0"}, {"dad_transmits", "0"}, {"disable_ipv6", disable}}
}

// setIPv6 applies them to an interface of the thread's network namespace. A kernel
// without IPv6 is an error only to a pod that needs it.
func setIPv6(ifName string, has6 bool) error {
	for _, s := range ipv6Settings(has6) {
		err := writeSysctl(ifName, s)
		if errors.Is(err, fs.ErrNotExist) && !has6 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sysctlPath(ifName, key string) string {
	return filepath.Join("/proc/sys/net/ipv6/conf", ifName, key)
}

// writeSysctl leaves a value alone that is already right: /proc/sys may be read-only.
func writeSysctl(ifName string, s setting) error {
	path := sysctlPath(ifName, s.key)
	now, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(now)) == s.value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(s.value), 0)
	}
	if err != nil {
		return fmt.Errorf("sysctl of %s: %w", ifName, err)
	}
	return nil
}
