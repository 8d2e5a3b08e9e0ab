// Package identity says who a packet's ends are: label sets and address blocks with
// numbers, the peer sets that policies draw over them, and the facts and address
// table that follow. It is pure: no kernel, no cluster, the standard library only.
package identity

// Number names an identity on this node. Below First it is reserved; with Block set
// it names a policy CIDR; otherwise a set of labels. Numbers are node-local and never
// given out again while anything can hold them.
type Number uint32

// Reserved numbers, those that Hubble's clients know by name; bpf/contract.h has the same names (a test in datapath/maps holds them together).
const (
	Unknown    Number = 0 // nothing is known
	Host       Number = 1 // this node's own addresses
	World      Number = 2 // outside the cluster
	Unmanaged  Number = 3 // in the cluster's ranges, not learned
	RemoteNode Number = 6 // another node's addresses
	First      Number = 256
	Block      Number = 1 << 31
)

// IsPod reports whether n stands for the labels of a pod.
func (n Number) IsPod() bool { return n >= First && n < Block }
