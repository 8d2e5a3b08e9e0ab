// Package maps is the only place where the kernel's maps are written. It compares a
// datapath.State with what the kernel holds and commits the difference in one epoch.
//
// What programs read while it is written lives in mmapped arrays of 8-byte words
// (memory.go) behind two slots with the epoch each is valid from (slots.go); everything
// else is immutable while in use and only ever added or removed (tracker.go). Nothing is
// recycled before a grace (grace.go): no program that could still read it runs any more.
//
// Bytes swap here and nowhere else (codec.go): Go is host order, addresses are 16 bytes
// in the order of the packet.
package maps
