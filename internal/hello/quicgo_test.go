package hello

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

func TestFirstFlightsOfQuicGo(t *testing.T) {
	protocols := make([]string, 60)
	for i := range protocols {
		protocols[i] = strings.Repeat("p", 40+i)
	}
	for what, test := range map[string]struct {
		tls  *tls.Config
		quic *quic.Config
		want string
		min  int // datagrams
	}{
		"one datagram":        {&tls.Config{ServerName: "Git.example.org", CurvePreferences: []tls.CurveID{tls.X25519}}, &quic.Config{}, "git.example.org", 1},
		"post-quantum":        {&tls.Config{ServerName: "git.example.org"}, &quic.Config{}, "git.example.org", 2},
		"version 2":           {&tls.Config{ServerName: "git.example.org"}, &quic.Config{Versions: []quic.Version{quic.Version2}}, "git.example.org", 2},
		"many protocols":      {&tls.Config{ServerName: "git.example.org", NextProtos: protocols}, &quic.Config{}, "git.example.org", 5},
		"an address, no name": {&tls.Config{ServerName: "127.0.0.1"}, &quic.Config{}, "", 1},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			silent, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			ctx, cancel := context.WithCancel(t.Context())
			var dial sync.WaitGroup
			defer dial.Wait()
			defer cancel()
			dial.Go(func() {
				config := test.tls.Clone()
				config.InsecureSkipVerify = true
				if len(config.NextProtos) == 0 {
					config.NextProtos = []string{"test"}
				}
				_, _ = quic.DialAddr(ctx, silent.LocalAddr().String(), config, test.quic)
			})

			_ = silent.SetReadDeadline(time.Now().Add(20 * time.Second))
			var flight [][]byte
			var q Initials
			for done := false; !done; {
				b := make([]byte, 2000)
				n, _, err := silent.ReadFrom(b)
				if err != nil {
					t.Fatalf("%d datagrams, and then: %v", len(flight), err)
				}
				flight = append(flight, b[:n])
				var name string
				name, done, err = add(t, &q, b[:n])
				if err != nil || done && name != test.want {
					t.Fatalf("%q, %v", name, err)
				}
			}
			if len(flight) < test.min {
				t.Errorf("the hello is in %d datagrams, and was to be in %d", len(flight), test.min)
			}
			for range 50 {
				checkInitials(t, shuffled(flight), test.want)
			}
		})
	}
}

// All that a client says to a real server, from its first datagram on: the
// name is in the packets after the Retry, and in those together with some before it.
func TestRetryOfQuicGo(t *testing.T) {
	server := newQuicServer(t, true)
	said := server.dial(t, nil)
	var before, after [][]byte
	first, _, _ := LongHeaderIDs(said[0])
	for _, d := range said {
		p, _, ok := parsePacket(d)
		switch {
		case !ok || p.kind != initial:
		case slices.Equal(p.dcid, first):
			before = append(before, d)
		case len(after) < 4:
			after = append(after, d)
		}
	}
	if len(before) == 0 || len(after) < 2 { // the Retry may come in the middle of the first flight
		t.Fatalf("%d Initial packets before the Retry and %d after it, of %d datagrams", len(before), len(after), len(said))
	}
	checkInitials(t, after, "git.example.org")
	checkInitials(t, slices.Concat(before[:1], after), "git.example.org")
	checkInitials(t, said[:min(len(said), MaxInitials)], "git.example.org")
}

// A client that has been there before sends data along with its hello, in
// packets that may overtake it.
func TestZeroRTTOfQuicGo(t *testing.T) {
	sessions := &ticketCache{lru: tls.NewLRUClientSessionCache(1), got: make(chan struct{})}
	newQuicServer(t, false).dial(t, sessions)

	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := quic.DialAddrEarly(ctx, silent.LocalAddr().String(), clientConfig(sessions), &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write(make([]byte, 4000)); err != nil {
		t.Fatal(err)
	}
	_ = silent.SetReadDeadline(time.Now().Add(20 * time.Second))
	var flight [][]byte
	early := 0
	for q := (Initials{}); !q.done || early < 3; {
		b := make([]byte, 2000)
		n, _, err := silent.ReadFrom(b)
		if err != nil {
			t.Fatalf("%d datagrams, of which %d begin with 0-RTT, and then: %v", len(flight), early, err)
		}
		flight = append(flight, b[:n])
		add(t, &q, b[:n])
		if p, _, _ := parsePacket(b[:n]); p.kind == zeroRTT {
			early++
		}
	}
	_ = c.CloseWithError(0, "")
	for range 50 {
		checkInitials(t, shuffled(flight), "git.example.org")
	}
}

// A quicServer is a real one, with a relay in front of it that writes down what
// clients say.
type quicServer struct{ addr netip.AddrPort }

func newQuicServer(t *testing.T, retry bool) quicServer {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	https := httptest.NewTLSServer(nil) // for its certificate
	https.Close()
	transport := &quic.Transport{Conn: conn, VerifySourceAddress: func(net.Addr) bool { return retry }}
	listener, err := transport.ListenEarly(&tls.Config{Certificates: https.TLS.Certificates, NextProtos: []string{"test"}}, &quic.Config{Allow0RTT: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		listener.Close()
		transport.Close()
		conn.Close()
	})
	go func() {
		for {
			c, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				stream, err := c.AcceptStream(context.Background())
				if err == nil {
					_, _ = stream.Write([]byte("welcome"))
					_ = stream.Close()
				}
			}()
		}
	}()
	return quicServer{conn.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// dial has a client greet the server and say goodbye, and returns what it said.
func (s quicServer) dial(t *testing.T, sessions *ticketCache) [][]byte {
	t.Helper()
	front, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.addr))
	if err != nil {
		t.Fatal(err)
	}
	var said [][]byte
	clients := make(chan netip.AddrPort, 1)
	var relay sync.WaitGroup
	relay.Go(func() {
		for b := make([]byte, 2000); ; {
			n, from, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if said = append(said, slices.Clone(b[:n])); len(said) == 1 {
				clients <- from
			}
			_, _ = back.Write(b[:n])
		}
	})
	relay.Go(func() {
		var client netip.AddrPort
		for b := make([]byte, 2000); ; {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			if !client.IsValid() {
				client = <-clients
			}
			_, _ = front.WriteToUDPAddrPort(b[:n], client)
		}
	})

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := quic.DialAddrEarly(ctx, front.LocalAddr().String(), clientConfig(sessions), &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if welcome, err := io.ReadAll(stream); string(welcome) != "welcome" || err != nil {
		t.Fatalf("%q, %v", welcome, err)
	}
	if sessions != nil {
		select {
		case <-sessions.got:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
	if err := c.CloseWithError(0, ""); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	front.Close()
	back.Close()
	relay.Wait()
	return said
}

func clientConfig(sessions *ticketCache) *tls.Config {
	config := &tls.Config{ServerName: "git.example.org", InsecureSkipVerify: true, NextProtos: []string{"test"}}
	if sessions != nil {
		config.ClientSessionCache = sessions
	}
	return config
}

// A ticketCache tells when the first ticket has come.
type ticketCache struct {
	lru  tls.ClientSessionCache
	once sync.Once
	got  chan struct{}
}

func (c *ticketCache) Get(key string) (*tls.ClientSessionState, bool) { return c.lru.Get(key) }

func (c *ticketCache) Put(key string, s *tls.ClientSessionState) {
	c.lru.Put(key, s)
	c.once.Do(func() { close(c.got) })
}
