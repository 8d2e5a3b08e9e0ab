package flowlog

import "fmt"

// Streams bounds how many clients are sent to at once, and so what they can make the agent hold:
// an element for each. Each has no more than a batch of records, linesMost of text (or gRPC's
// window) and what its connection holds.
type Streams chan struct{}

// NewStreams allows so many.
func NewStreams(most int) Streams { return make(Streams, most) }

// Enter takes a place, for Leave to give back. The error says that there is none.
func (s Streams) Enter() error {
	select {
	case s <- struct{}{}:
		return nil
	default:
		return fmt.Errorf("%d streams are open already: try again later", cap(s))
	}
}

// Leave gives the place back.
func (s Streams) Leave() { <-s }
