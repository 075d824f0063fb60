package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// Colours are only that: columns are where they are without.
func TestStatusInColourIsTheSame(t *testing.T) {
	now := time.Now()
	s := status.Status{
		NotReady: []string{"@eth1:80"}, Conntrack: &status.Conntrack{Entries: 95, Max: 100}, Problems: []edge.Problem{{What: "x"}},
		Frontends: []status.Frontend{{Name: "web", Protocol: edge.TCP, Listen: "@eth1:80", Backends: []status.Backend{
			{Addr: "10.0.0.1:80", State: edge.Up},
			{Addr: "10.0.0.2:80", State: edge.Down},
			{Addr: "10.0.0.3:80", State: edge.Pending},
			{Addr: "10.0.0.4:80", State: status.Draining, Drain: status.DrainFrom(now, 0)},
		}}},
	}
	var coloured, without strings.Builder
	if err := printStatus(&coloured, s, now, true); err != nil {
		t.Fatal(err)
	}
	if err := printStatus(&without, s, now, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\x1b[31mwaiting for @eth1:80\x1b[0m", "\x1b[32mup\x1b[0m", "\x1b[31mdown\x1b[0m", "\x1b[90mdraining\x1b[0m", "\x1b[31m95 of 100 entries\x1b[0m"} {
		if !strings.Contains(coloured.String(), want) {
			t.Errorf("there is no %q", want)
		}
	}
	if got := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(coloured.String(), ""); got != without.String() {
		t.Errorf("without its colours it is\n%swant\n%s", got, without.String())
	}
	if strings.Contains(without.String(), "\x1b") {
		t.Errorf("there are colours in\n%q", without.String())
	}
}

// On a terminal each picture is drawn over the last one, and what that had more
// is wiped.
func TestWatchDrawsOverTheLastPicture(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	pictures := []string{"one\ntwo\nthree\n", "four\n"}
	var out bytes.Buffer
	err := repeat(ctx, &out, true, "---\n", func(_ context.Context, w io.Writer) error {
		_, _ = io.WriteString(w, pictures[0])
		if pictures = pictures[1:]; len(pictures) == 0 {
			time.AfterFunc(watchInterval/2, cancel)
		}
		return nil
	})
	const want = "\x1b[2J\x1b[Hone\x1b[K\ntwo\x1b[K\nthree\x1b[K\n\x1b[J" + "\x1b[Hfour\x1b[K\n\x1b[J"
	if err != nil || out.String() != want {
		t.Errorf("got %q %v, want %q", out.String(), err, want)
	}
}

func TestSilenceSaysHowLongWasWaited(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	address := "http://" + listener.Addr().String() + "/status.json"
	_, err = ask(t.Context(), address, 50*time.Millisecond)
	if want := address + " has not answered within 50ms"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTheDaemonIsAskedWhereItListens(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9180": "http://127.0.0.1:9180/status.json",
		"10.0.0.1:9180":  "http://10.0.0.1:9180/status.json",
		"localhost:9180": "http://localhost:9180/status.json",
		"0.0.0.0:9180":   "http://127.0.0.1:9180/status.json",
		"[::]:9180":      "http://[::1]:9180/status.json",
		"[fd00::1]:9180": "http://[fd00::1]:9180/status.json",
	} {
		if got, err := statusURL(reachable(listen)); err != nil || got != want {
			t.Errorf("%s: got %s %v, want %s", listen, got, err, want)
		}
	}
}
