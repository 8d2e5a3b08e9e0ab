package policy

// counter gives keys numbers in the order they come.
type counter struct {
	Next uint32            `json:"next"`
	IDs  map[string]uint32 `json:"ids"`
	keys map[uint32]string
	used map[uint32]uint64 // turn of the latest use, 0 = released since
}

func (c *counter) id(key string, turn uint64) (id uint32, fresh bool) {
	id, ok := c.IDs[key]
	if !ok {
		id = c.Next
		c.Next++ // 4 billion are some years of edits
		c.IDs[key], c.keys[id] = id, key
	}
	c.used[id] = turn
	return id, !ok
}

// forget drops what was not used since turn.
func (c *counter) forget(turn uint64) {
	for _, id := range c.IDs {
		if c.used[id] < turn {
			c.drop(id)
		}
	}
}

func (c *counter) drop(id uint32) {
	delete(c.IDs, c.keys[id])
	delete(c.keys, id)
	delete(c.used, id)
}

func newCounter(first uint32) counter {
	return counter{Next: first, IDs: map[string]uint32{}, keys: map[uint32]string{}, used: map[uint32]uint64{}}
}

// index makes what is not saved of what is.
func (c *counter) index() {
	c.keys, c.used = make(map[uint32]string, len(c.IDs)), map[uint32]uint64{}
	for key, id := range c.IDs {
		c.keys[id] = key
	}
}

// idle is what is out of use and still known, what was used longest ago first.
type idle[K comparable] struct {
	queue []K
	turns []uint64
	since map[K]uint64
	turn  uint64
}

func (q *idle[K]) add(k K) {
	if _, there := q.since[k]; there {
		return
	}
	if len(q.queue) > 2*len(q.since)+64 {
		q.compact()
	}
	q.turn++
	q.since[k] = q.turn
	q.queue, q.turns = append(q.queue, k), append(q.turns, q.turn)
}

// remove reports whether k was idle.
func (q *idle[K]) remove(k K) bool {
	_, there := q.since[k]
	delete(q.since, k)
	return there
}

func (q *idle[K]) oldest() (k K, ok bool) {
	for len(q.queue) > 0 {
		k, turn := q.queue[0], q.turns[0]
		q.queue, q.turns = q.queue[1:], q.turns[1:]
		if q.since[k] == turn {
			delete(q.since, k)
			return k, true
		}
	}
	return k, false
}

// compact drops from the queue what is in use again.
func (q *idle[K]) compact() {
	var queue []K
	var turns []uint64
	for i, k := range q.queue {
		if q.since[k] == q.turns[i] {
			queue, turns = append(queue, k), append(turns, q.turns[i])
		}
	}
	q.queue, q.turns = queue, turns
}
