package hello

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// captured returns the datagrams of a file in testdata, or what came over a
// connection as the only one.
func captured(t testing.TB, name string) [][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var datagrams [][]byte
	for block := range strings.SplitSeq(string(text), "\n\n") {
		b, err := hex.DecodeString(strings.Join(strings.Fields(block), ""))
		if err != nil {
			t.Fatal(err)
		}
		datagrams = append(datagrams, b)
	}
	return datagrams
}
