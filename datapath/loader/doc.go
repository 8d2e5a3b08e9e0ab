// Package loader loads the shared programs, pins them, their maps and their links, adopts
// what an earlier agent pinned, and attaches hooks. It is the only importer of
// cilium/ebpf/link.
package loader
