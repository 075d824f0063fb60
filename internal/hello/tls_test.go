package hello

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
)

// clientHello returns what a client of crypto/tls says first.
func clientHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		_ = tls.Client(client, config).Handshake()
	}()
	b := make([]byte, 64<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestEveryPrefixOfAHelloIsShort(t *testing.T) {
	b := clientHello(t, &tls.Config{ServerName: "Git.Example.org"})
	for i := range b {
		if name, err := TLS(b[:i]); name != "" || !errors.Is(err, ErrShort) {
			t.Fatalf("%d of %d bytes: %q, %v; want %v", i, len(b), name, err, ErrShort)
		}
	}
	if name, err := TLS(b); name != "git.example.org" || err != nil {
		t.Fatalf("%q, %v", name, err)
	}
}
