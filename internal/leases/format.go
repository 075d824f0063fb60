package leases

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"e13.dev/gatehouse/internal/edge"
)

const (
	magic  = "gatehouse-leases "
	header = magic + "1\n"
	// A line is eight digits of a checksum, a space, and JSON.
	sumDigits = 8
)

// errVersion is why a file is not touched.
var errVersion = errors.New("the file of leases was written by another version of gatehouse")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Content is what a file holds.
type Content struct {
	Leases []edge.Lease // the last of each address; sorted by address
	// Damaged is how many lines cannot be read, and are before one that can. Those
	// at the end were being written when the power went, and nobody was told of
	// them.
	Damaged int
}

// Decode reads a file. The error is one of its version: whatever else is wrong,
// what can be read is.
func Decode(data []byte) (Content, error) {
	var c Content
	all := map[netip.Addr]edge.Lease{}
	bad := 0
	for first := true; len(data) > 0; first = false {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		data = rest
		if first && whole {
			if version, ok := bytes.CutPrefix(line, []byte(magic)); ok {
				if n, err := strconv.Atoi(string(version)); err == nil && n != 1 {
					return c, fmt.Errorf("%w: its format is %d, and 1 is known", errVersion, n)
				} else if err == nil {
					continue
				}
			}
		}
		l, ok := parseLine(line)
		if !ok || !whole {
			bad++
			continue
		}
		c.Damaged, bad = c.Damaged+bad, 0
		if l.Expires.IsZero() {
			delete(all, l.Addr)
		} else {
			all[l.Addr] = l
		}
	}
	c.Leases = sorted(all)
	return c, nil
}

func parseLine(line []byte) (edge.Lease, bool) {
	var l edge.Lease
	if len(line) <= sumDigits || line[sumDigits] != ' ' {
		return l, false
	}
	sum, err := strconv.ParseUint(string(line[:sumDigits]), 16, 32)
	body := line[sumDigits+1:]
	if err != nil || crc32.Checksum(body, castagnoli) != uint32(sum) {
		return l, false
	}
	return l, json.Unmarshal(body, &l) == nil && l.Addr.IsValid()
}

func appendLine(b []byte, l edge.Lease) []byte {
	body, err := json.Marshal(l)
	if err != nil { // a year beyond 9999, which no lease ends in
		return b
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(body, castagnoli))
	return append(append(b, body...), '\n')
}

func sorted(all map[netip.Addr]edge.Lease) []edge.Lease {
	return slices.SortedFunc(maps.Values(all), func(a, b edge.Lease) int { return a.Addr.Compare(b.Addr) })
}
