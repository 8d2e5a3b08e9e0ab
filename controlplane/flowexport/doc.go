// Package flowexport hands the node's flows to others: each Exporter reads the flow log at
// its own pace and gives what it reads to one Target, by way of a queue of its own.
//
//	flow log --Select--> Send -> [queue] -> batch -> Target
//
// Nothing waits for a target: what its queue has no room for is lost and counted, and a
// lost_events message stands in the stream in its place. Of every flow that was meant for a
// target, taken = exported + lost + queued holds at any time.
package flowexport
