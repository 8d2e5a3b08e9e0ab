package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"strings"

	"github.com/weirnet/weir/controlplane/api"
)

const (
	hostPrefix  = "weir"
	hostHexLen  = 11 // with the prefix as long as an interface name may be
	aliasPrefix = "weir-cni "
)

// hostMAC is the address of every host side; the pods' permanent neighbours name it.
var hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// HostIfName is the name of an attachment's host side, if it is ours, and in any case of
// what its links are pinned below.
func HostIfName(containerID, ifName string) string {
	sum := sha256.Sum256([]byte(containerID + "/" + ifName))
	return hostPrefix + hex.EncodeToString(sum[:])[:hostHexLen]
}

// alias is what the host side's ifalias says, so that GC knows whose it is. No part
// can hold a space: the runtime's names and ours are checked.
func alias(network string, a api.Attachment) string {
	return aliasPrefix + network + " " + a.ContainerID + " " + a.IfName
}

// parseAlias is the reverse; ok is false for an interface that is not ours.
func parseAlias(s string) (network string, a api.Attachment, ok bool) {
	rest, found := strings.CutPrefix(s, aliasPrefix)
	f := strings.Split(rest, " ")
	if !found || len(f) != 3 {
		return "", api.Attachment{}, false
	}
	return f[0], api.Attachment{ContainerID: f[1], IfName: f[2]}, true
}
