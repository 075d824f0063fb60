package dns

import (
	"fmt"
	"testing"
)

// Who asks for large answers only has no more memory taken than others.
func TestCacheIsBoundedInBytes(t *testing.T) {
	c := newCache()
	c.resize(10_000)
	large := &packed{wire: make([]byte, 60_000), expires: staleTime}
	for i := range 10_000 {
		c.put(fmt.Append(nil, i), large, 0)
		c.put(fmt.Append(nil, i), large, 0)
	}
	held := 0
	for i := range c.shards {
		s := &c.shards[i]
		n := 0
		for _, e := range s.entries {
			n += len(e.answer.wire)
		}
		if n != s.bytes {
			t.Fatalf("%d bytes are kept, and %d are counted", n, s.bytes)
		}
		held += n
	}
	if held > 11<<20 || c.len() == 0 {
		t.Errorf("%d answers of %d bytes in all are kept", c.len(), held)
	}
	c.clear()
	for i := range c.shards {
		if n := c.shards[i].bytes; n != 0 {
			t.Fatalf("%d bytes are counted, and nothing is kept", n)
		}
	}
	c.resize(1)
	if c.put([]byte("x"), large, 0); c.get([]byte("x"), 0) != large {
		t.Error("a large one is not kept where there is room for one")
	}
}
