package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/history"
)

// What it costs to remember the counters, which is done each history.Every
// whether anybody asks or not; and for comparison, to tell all.
func BenchmarkRemember(b *testing.B) {
	for _, n := range []int{10, 1000, 7000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := manyFrontends(b, n)
			before := runtime.GOMAXPROCS(0) // as the relay wants it; a benchmark has set it back
			room := func() { runtime.GOMAXPROCS(2 * before) }
			h := history.New()
			b.Run("counts", func(b *testing.B) {
				b.ReportAllocs()
				room()
				for b.Loop() {
					h.Note(time.Now(), d.counts())
				}
			})
			b.Run("status", func(b *testing.B) {
				b.ReportAllocs()
				room()
				for b.Loop() {
					d.Status()
				}
			})
		})
	}
}

// manyFrontends is a daemon with so many doors on loopback, of one backend each.
func manyFrontends(b *testing.B, n int) *Daemon {
	text := strings.Builder{}
	text.WriteString("apiVersion: gatehouse.e13.dev/v1\nfrontends:\n")
	for i := range n {
		fmt.Fprintf(&text, "  - {name: f%d, listen: \"127.1.%d.%d:8080\", health: {interval: 0s}, backends: [{address: \"127.0.0.1:9\"}]}\n", i, i/250, i%250+1)
	}
	file := filepath.Join(b.TempDir(), "many.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	d := New(Options{Files: []string{file}, Version: "test", Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	for late := time.Now().Add(time.Minute); ; {
		if s := d.Status(); s.Ready && len(s.Frontends) == n {
			return d
		}
		if time.Now().After(late) {
			s := d.Status()
			b.Fatal("not ready: ", s.NotReady, s.Problems)
		}
		<-time.After(10 * time.Millisecond)
	}
}
