// Package format writes flow messages for people, from the messages alone, so the
// command line and whoever else reads the flow API say the same.
package format
