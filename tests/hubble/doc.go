// Package hubble holds Weir against Hubble's own: its command-line client against an agent
// in namespaces, and its filters against ours.
package hubble
