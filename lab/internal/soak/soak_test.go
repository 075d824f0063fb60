package soak

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestMain is also the client and the backends, which are this program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		if err := Child(os.Args[2:]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A short soak: nothing is left behind, and clients of backends that are there see no failure.
func TestLabNothingIsLeftBehind(t *testing.T) {
	if os.Getenv("GATEHOUSE_LAB") != "required" {
		t.Skip("needs root and the built program; GATEHOUSE_LAB=required runs it")
	}
	bin := os.Getenv("LAB_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../../bin")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	dir := t.TempDir()
	result, err := Run(t.Context(), Options{
		Gatehouse: filepath.Join(bin, "gatehouse"), Dir: dir, Duration: 12 * time.Second, Every: time.Second, Child: []string{self, "child"}, Log: &log,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if !result.Verdict(&log) {
		tail, _ := os.ReadFile(filepath.Join(dir, "gatehouse.log"))
		t.Errorf("not all is well; gatehouse said:\n%s", tail[max(0, len(tail)-5000):])
	}
	t.Log("\n" + log.String())
	for kind, n := range result.Loads {
		if n.Done == 0 {
			t.Errorf("there was no load of the kind %q", kind)
		}
	}
}

func fine() *Result {
	at := Sample{Phase: after, Descriptors: 90, Goroutines: 19}
	r := &Result{Before: at, After: at, Loads: map[string]Count{"short": {Done: 100, Excused: 3}}, Accepted: 103, Accounted: 103}
	for i := range 100 {
		r.Samples = append(r.Samples, Sample{Seconds: float64(10 * i), Phase: during, RSS: 50_000 + 3000*float64(i%5)})
	}
	return r
}

// The verdict is told apart by each thing that can be wrong.
func TestVerdict(t *testing.T) {
	if !fine().Verdict(io.Discard) {
		t.Error("a good run is called bad")
	}
	for name, spoil := range map[string]func(*Result){
		"a descriptor more":         func(r *Result) { r.After.Descriptors++ },
		"a goroutine more":          func(r *Result) { r.After.Goroutines++ },
		"a connection left":         func(r *Result) { r.After.Connections++ },
		"a session left":            func(r *Result) { r.After.Sessions++ },
		"a failure":                 func(r *Result) { r.Loads["idle"] = Count{Done: 1000, Failed: 1} },
		"nothing happened":          func(r *Result) { r.Loads = nil },
		"a connection without fate": func(r *Result) { r.Accepted++ },
		"nothing was counted":       func(r *Result) { r.Accepted, r.Accounted = 0, 0 },
		"memory that grows": func(r *Result) { // by 5 MiB over the second half
			for i := range r.Samples {
				r.Samples[i].RSS += 0.1 * 1024 * float64(i)
			}
		},
	} {
		r := fine()
		spoil(r)
		if r.Verdict(io.Discard) {
			t.Errorf("%s: all is called well", name)
		}
	}
}

func TestGrowthIsThatOfTheSecondHalf(t *testing.T) {
	var samples []Sample
	for i := range 200 { // up in the first half, level with a saw in the second one
		samples = append(samples, Sample{Seconds: float64(10 * i), Phase: during, RSS: 1000*float64(min(i, 99)) + float64(i%10)})
	}
	if kib, known := Growth(samples); !known || math.Abs(kib) > 3 {
		t.Errorf("grew by %g, %v", kib, known)
	}
	if _, known := Growth(samples[:20]); known {
		t.Error("two hundred seconds have a trend")
	}
}

func TestSamplesAreReadAsTheyWereWritten(t *testing.T) {
	want := []Sample{{Seconds: 1.5, Phase: before, RSS: 2, Heap: 3, Descriptors: 4, CPUAll: 0.25}, {Seconds: 12, Phase: after, Made: 1e6}}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write(header())
	for _, s := range want {
		_ = w.Write(s.row())
	}
	w.Flush()
	got, err := ReadCSV(&b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v %v, want %v", got, err, want)
	}
	if _, err := ReadCSV(strings.NewReader("a,b\n1,2\n")); err == nil {
		t.Error("another table is taken for samples")
	}
}

func TestMetricsAreCounted(t *testing.T) {
	const text = `# HELP go_goroutines x
go_goroutines 19
go_memstats_heap_inuse_bytes 2.048e+06
gatehouse_frontend_connections_active{frontend="a b",listen=":1",protocol="TCP",zone=""} 3
gatehouse_frontend_connections_active{frontend="d",listen=":1",protocol="UDP",zone=""} 4
gatehouse_frontend_connections_total{frontend="a b",listen=":1",protocol="TCP",zone=""} 10
gatehouse_frontend_connections_ended_total{frontend="a b",how="finished",listen=":1",protocol="TCP",zone=""} 5
gatehouse_frontend_failures_total{frontend="a b",listen=":1",protocol="TCP",reason="refused",zone=""} 1
gatehouse_backend_connections_active{backend="x",frontend="a b",listen=":1",protocol="TCP",zone=""} 3
`
	var s Sample
	s.metrics(text)
	if want := (Sample{Goroutines: 19, Heap: 2000, Connections: 3, Sessions: 4}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	if accepted, accounted := balance(text); accepted != 10 || accounted != 13 {
		t.Errorf("accepted %g, accounted for %g", accepted, accounted)
	}
	if m := mode([]float64{3, 2, 2, 9, 3, 3}); m != 3 {
		t.Errorf("most of them are %g", m)
	}
}

func TestGraphIsXMLWithEveryPanel(t *testing.T) {
	for name, samples := range map[string][]Sample{"a run": fine().Samples, "nothing": nil, "one sample": {{}}, "at once": {{}, {}}} {
		text := Graph(samples)
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v\n%s", name, err, text)
			}
		}
		for _, p := range panels {
			if !strings.Contains(text, p.title) {
				t.Errorf("%s: no panel %q", name, p.title)
			}
		}
		if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s: not a number\n%s", name, text)
		}
	}
}

// What a run has left can be read again, and written into the documentation, again and again.
func TestResultIsWrittenBetweenTheMarkers(t *testing.T) {
	dir := t.TempDir()
	r := fine()
	var samples bytes.Buffer
	w := csv.NewWriter(&samples)
	_ = w.Write(header())
	for _, s := range r.Samples {
		_ = w.Write(s.row())
	}
	w.Flush()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(dir, "page.md")
	for name, content := range map[string]string{
		"soak.csv": samples.String(), "soak.json": string(text), "page.md": "head\n" + markBegin + "old\n" + markEnd + "tail\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read, r) {
		t.Errorf("read %+v, want %+v", read, r)
	}
	for range 2 {
		if err := read.Write(page, filepath.Join(dir, "graph.svg")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if want := "head\n" + markBegin + r.Markdown("graph.svg") + markEnd + "tail\n"; err != nil || string(got) != want {
		t.Errorf("got %s %v, want %s", got, err, want)
	}
	if err := os.WriteFile(page, []byte("no markers\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if read.Write(page, "graph.svg") == nil {
		t.Error("a page without markers was written")
	}
}

// The bytes of a stream are compared, to the last one, and a wrong one is told from an early end.
func TestDrainSeesWhatIsWrong(t *testing.T) {
	const total = 3 << 20
	poured := func(number int) []byte {
		var b bytes.Buffer
		if err := pour(&b, number, total, 0); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		spoil func([]byte) []byte
		want  error
	}{
		"whole":          {func(b []byte) []byte { return b }, nil},
		"another byte":   {func(b []byte) []byte { b[total-1] ^= 1; return b }, errWrong},
		"too short":      {func(b []byte) []byte { return b[:total-1] }, errShort},
		"too long":       {func(b []byte) []byte { return append(b, stream(7, total, 1)...) }, errShort},
		"a page missing": {func(b []byte) []byte { return append(b[:4096:4096], b[8192:]...) }, errWrong},
		"nothing":        {func([]byte) []byte { return nil }, errShort},
	} {
		err := drain(bytes.NewReader(c.spoil(poured(7))), 7, 0, total, 64<<10, 0, nil)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
