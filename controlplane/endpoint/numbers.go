package endpoint

import "fmt"

// MaxNumber is the greatest endpoint number; 0 is none (bpf/contract.h, MAX_ENDPOINTS).
const MaxNumber = 1023

// numbers gives endpoint numbers out in turn, so that the longest unused comes next and
// one never used before any other.
type numbers struct {
	Last uint32 `json:"last"` // given out
}

// next is the first number after the last that free agrees to.
func (n numbers) next(free func(uint32) bool) (uint32, error) {
	for i := range uint32(MaxNumber) {
		if number := (n.Last+i)%MaxNumber + 1; free(number) {
			return number, nil
		}
	}
	return 0, fmt.Errorf("all %d endpoint numbers are in use, or flows of pods that are gone hold them", MaxNumber)
}
