package laststate

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	magic   = "gatehouse-state"
	version = 1
	// What ten thousand Services with a hundred thousand endpoints take is a
	// twentieth of these; what is larger is not ours.
	maxSize    = 64 << 20
	maxContent = 512 << 20
	maxHeader  = 256
)

var (
	errNoHeader = errors.New(`it does not begin with "` + magic + ` ` + strconv.Itoa(version) + ` sha256:..."`)
	errChecksum = errors.New("it is damaged: its content is not what its checksum says")
	errTooLarge = fmt.Errorf("it is larger than %d MiB, or than %d MiB with what is compressed in it", maxSize>>20, maxContent>>20)
	errMore     = errors.New("there is more in it than a state")
	errNotWhole = errors.New("it does not say of which cluster it is, or of when")
)

// Encode makes a file of a state. Decode(Encode(s)) is s, times as the same
// moment: the types of edge.Cluster have exported fields only, whose JSON tells
// nil from empty, and the zero address is "".
func Encode(s State) ([]byte, error) {
	var content bytes.Buffer
	z, err := gzip.NewWriterLevel(&content, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	plain := &counter{to: z}
	if err := json.NewEncoder(plain).Encode(s); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if content.Len()+maxHeader > maxSize || plain.n > maxContent {
		return nil, errTooLarge // it would not be read again
	}
	sum := sha256.Sum256(content.Bytes())
	header := fmt.Appendf(nil, "%s %d sha256:%x\n", magic, version, sum)
	return append(header, content.Bytes()...), nil
}

type counter struct {
	to io.Writer
	n  int
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	return c.to.Write(p)
}

// Decode reads what Encode has made, of this version. Whatever else it is given,
// it returns an error.
func Decode(data []byte) (*State, error) {
	header, _, ok := bytes.Cut(data[:min(len(data), maxHeader)], []byte("\n"))
	if !ok {
		return nil, errNoHeader
	}
	content := data[len(header)+1:]
	fields := strings.Split(string(header), " ")
	if len(fields) < 2 || fields[0] != magic {
		return nil, errNoHeader
	}
	switch v, err := strconv.ParseUint(fields[1], 10, 32); {
	case err != nil:
		return nil, errNoHeader
	case v != version:
		return nil, fmt.Errorf("it is of version %d, and this gatehouse reads version %d", v, version)
	case len(fields) != 3:
		return nil, errNoHeader
	}
	want, ok := strings.CutPrefix(fields[2], "sha256:")
	if sum := sha256.Sum256(content); !ok || want != hex.EncodeToString(sum[:]) {
		return nil, errChecksum
	}
	return decompress(content, maxContent)
}

func decompress(content []byte, most int64) (*State, error) {
	z, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: z, N: most}
	decoder := json.NewDecoder(limited)
	var s State
	err = decoder.Decode(&s)
	if limited.N <= 0 {
		return nil, errTooLarge
	}
	if err != nil {
		return nil, err
	}
	// To the end, where gzip has a checksum of its own.
	switch _, err := decoder.Token(); {
	case err == nil:
		return nil, errMore
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	if s.Source == "" || s.SavedAt.IsZero() {
		return nil, errNotWhole
	}
	return &s, nil
}
