package packetfuzz

import (
	"errors"
	"testing"
)

// TestDifferencesAreFound shows that the comparison can fail: the reference is shown frames
// with one thing changed, as if the programs read that thing wrong.
func TestDifferencesAreFound(t *testing.T) {
	flip := func(family byte, protocols string, at int) func([]byte) []byte {
		return func(b []byte) []byte {
			is := map[byte]int{4: 0x08, 6: 0x86}[family]
			protocol := map[byte]int{4: 23, 6: 20}[family]
			if len(b) <= max(at, protocol) || int(b[12]) != is {
				return b
			}
			for _, p := range []byte(protocols) {
				if b[protocol] == p {
					b[at] ^= 2
				}
			}
			return b
		}
	}
	for name, misread := range map[string]func([]byte) []byte{
		"source port":              flip(4, "\x06\x11", 35),
		"destination port":         flip(4, "\x06\x11", 37),
		"destination port of SCTP": flip(6, "\x84", 57),
		"source address":           flip(6, "\x06\x11\x32", 37),
		"destination address":      flip(4, "\x2f", 33),
		"total length":             flip(4, "\x11\x32", 17),
		"payload length":           flip(6, "\x06", 19),
		"protocol":                 flip(4, "\x32", 23),
		"id of an echo":            flip(4, "\x01", 39),
		"type of ICMP":             flip(6, "\x3a", 54),
		"quoted port":              flip(4, "\x01", 65),
		"flags of TCP":             flip(4, "\x06", 47),
		"id of a fragment":         func(b []byte) []byte { b[min(19, len(b)-1)] = 0; return b },
		"fragment offset":          flip(6, "\x2c", 56),
		"next header behind it":    flip(6, "\x2c", 54),
		"end of the frame":         func(b []byte) []byte { return b[:max(14, len(b)-1)] },
		"a byte in the middle":     func(b []byte) []byte { return append(b[:14], append([]byte{0x45}, b[14:]...)...) },
		"ethertype":                func(b []byte) []byte { b[12] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := newJudge(newScene(t))
			j.misread = misread
			_, err := j.fuzz(newGenerator(1), 20000)
			if d := new(disagreement); !errors.As(err, &d) {
				t.Errorf("nothing was found in 20000 frames: %v", err)
			}
		})
	}
}
