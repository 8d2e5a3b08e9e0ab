// Package flowlog turns the kernel's events into flows with names and keeps the newest
// of them: read -> name -> keep -> query -> message. Records name their pods and rules
// as they were called when the event was read. Answers are Hubble flow messages
// (github.com/cilium/cilium/api/v1/{flow,observer}); what Hubble has no field for is in
// the extension, api.FlowExtension.
package flowlog
