// Package export hands what the node knows to other people's systems. Nothing here can hold
// up the datapath, the flow log or another export: each reads the log at its own pace, and
// what it is too slow for is lost to it alone, and counted.
package export
