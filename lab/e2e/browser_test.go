package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// tab is a page of a real browser, and what went over its network.
type tab struct {
	t      *testing.T
	ctx    context.Context
	origin string // of the status page

	mu       sync.Mutex
	requests []string
	received int64    // bytes as they came over the wire; of what goes on, as they were before gzip
	wrong    []string // what the console says
}

// openTab starts Chromium. The edge's loopback is not that of Chromium, so the
// test takes its connections there.
func openTab(t *testing.T) *tab {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := lab.Dialer("edge")(context.Background(), "tcp", "127.0.0.1:9180")
				if err != nil {
					return
				}
				defer server.Close()
				go func() {
					defer server.Close()
					_, _ = io.Copy(server, client)
				}()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WSURLReadTimeout(time.Minute))
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(allocator)
	t.Cleanup(closeTab)
	b := &tab{t: t, ctx: ctx, origin: "http://" + listener.Addr().String() + "/"}
	if err := chromedp.Listen(ctx, b.note); err != nil {
		t.Fatal("is Chromium installed? scripts/deps does it: ", err)
	}
	tell(b, network.Enable, network.EnableParams{})
	tell(b, log.Enable, cdp.Empty{})
	tell(b, runtime.Enable, cdp.Empty{})
	b.size(1280, 1000, false)
	return b
}

func (b *tab) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *network.EventEventSourceMessageReceived:
		b.received += int64(len(e.Data))
	case *network.EventLoadingFinished:
		b.received += int64(e.EncodedDataLength)
	case *log.EventEntryAdded:
		b.wrong = append(b.wrong, fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *runtime.EventExceptionThrown:
		b.wrong = append(b.wrong, "exception: "+e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.wrong = append(b.wrong, "console."+string(e.Type))
	}
}

func tell[P, R any](b *tab, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *tab) size(width, height int64, phone bool) {
	tell(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: phone})
}

// prefers sets what the user of the browser prefers: "color-scheme", "dark".
func (b *tab) prefers(features ...string) {
	var p emulation.SetEmulatedMediaParams
	for i := 0; i < len(features); i += 2 {
		p.Features = append(p.Features, &emulation.MediaFeature{Name: "prefers-" + features[i], Value: features[i+1]})
	}
	tell(b, emulation.SetEmulatedMedia, p)
}

// see opens a page of gatehouse, and waits until it is live, if it is to be.
func (b *tab) see(path string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.origin + path))
}

// is evaluates an expression of JavaScript.
func is[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// comes waits until an expression is true, and returns how long that took.
func (b *tab) comes(limit time.Duration, what, expression string) time.Duration {
	b.t.Helper()
	took := eventually(b.t, limit, what, func() error {
		ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
		defer cancel()
		// While another page is loaded there is nothing to ask.
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`(`+expression+`) === true ? "" : "the page says\n" + document.body?.innerText`))
		if err == nil && text != "" {
			err = errors.New(text)
		}
		return err
	})
	b.t.Logf("%s after %d ms", what, took.Milliseconds())
	return took
}
