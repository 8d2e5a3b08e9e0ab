// Package hubble serves the node's flows by Hubble's API (gRPC): observer.Observer,
// peer.Peer, health and reflection, on a socket in the state directory and, if told so,
// by TCP with mutual TLS. It is the only user of gRPC.
package hubble
