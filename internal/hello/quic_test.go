package hello

import (
	"bytes"
	"encoding/hex"
	"os"
	"testing"
)

func hexFile(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 9001, appendix A.2, and RFC 9369, appendix A.2.
func TestInitialsOfTheStandards(t *testing.T) {
	for _, name := range []string{"rfc9001.hex", "rfc9369.hex"} {
		t.Run(name, func(t *testing.T) {
			datagram := hexFile(t, name)
			before := bytes.Clone(datagram)
			var q Initials
			got, done, err := q.Add(datagram)
			if got != "example.com" || !done || err != nil {
				t.Errorf("Add: %q, %v, %v; want example.com", got, done, err)
			}
			if !bytes.Equal(datagram, before) {
				t.Error("the datagram was written to")
			}
		})
	}
}
