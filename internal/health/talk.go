package health

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

const (
	// As much as this of an answer is read, its header included, and as much
	// again thrown away.
	maxAnswer = 64 << 10
	// The end of a conversation waits this long for the server to end it too.
	partFor = 100 * time.Millisecond
	// Characters of an answer that are shown.
	maxQuote = 40
)

// introduce says, to a server that expects a PROXY protocol header, that what
// comes is from nobody in particular.
func introduce(conn net.Conn, version edge.ProxyProtocol) (err error) {
	switch version {
	case edge.ProxyProtocolV1:
		_, err = io.WriteString(conn, "PROXY UNKNOWN\r\n")
	case edge.ProxyProtocolV2: // LOCAL, which is for health checks; without addresses
		_, err = io.WriteString(conn, "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
	default:
	}
	return err
}

// handshake makes a TLS handshake. The certificate is not verified: what is
// asked is whether the server lives, and its clients will see for themselves
// whose it is. Nor is one shown.
func handshake(conn net.Conn, check edge.HealthCheck) (net.Conn, error) {
	config := &tls.Config{
		ServerName: check.Host, // crypto/tls does not send an address
		//nolint:gosec // G402: nothing secret is sent, and an answer proves no more than that there is one
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS10,
	}
	if host, _, err := net.SplitHostPort(check.Host); err == nil {
		config.ServerName = host
	}
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		config.CipherSuites = append(config.CipherSuites, suite.ID) // an old server is alive too
	}
	if check.Type == edge.CheckHTTPS {
		config.NextProtos = []string{"http/1.1"}
	}
	secure := tls.Client(conn, config)
	if err := secure.Handshake(); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("closed the connection in the TLS handshake")
		}
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return secure, nil
}

// askHTTP asks for the path of a check and compares the status. Redirects are
// an answer like others: where they lead to is not asked.
func askHTTP(conn net.Conn, addr netip.AddrPort, check edge.HealthCheck) error {
	host, path := check.Host, check.Path
	if host == "" {
		host = hostOf(addr)
	}
	if path == "" {
		path = "/"
	}
	status, _, err := get(conn, host, path)
	if err != nil {
		return err
	}
	least, most := check.StatusMin, check.StatusMax
	if least == 0 && most == 0 {
		least, most = 200, 399
	}
	switch {
	case least <= status && status <= most:
		return nil
	case least == most:
		return fmt.Errorf("answered %d, want %d", status, least)
	default:
		return fmt.Errorf("answered %d, want %d-%d", status, least, most)
	}
}

// hostOf is an address in a Host header: without the zone, which is this
// machine's (RFC 6874, section 4).
func hostOf(addr netip.AddrPort) string {
	return netip.AddrPortFrom(addr.Addr().WithZone(""), addr.Port()).String()
}

// get asks for a path and returns status and header. The body of the answer has been read, as far as the
// bound and ctx of the conversation allow, and is gone.
//
// It is without net/http's Transport: that keeps goroutines and a pool for what
// is one question, and logs by itself what servers of other protocols say.
func get(conn io.ReadWriter, host, path string) (status int, header http.Header, err error) {
	if strings.ContainsFunc(host+path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return 0, nil, fmt.Errorf("cannot ask for %q of %q: a blank or control character", path, host)
	}
	request := "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: gatehouse\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, nil, err
	}
	source := &failing{r: conn}
	bounded := &io.LimitedReader{R: source, N: maxAnswer}
	reader := bufio.NewReader(bounded)
	for {
		resp, err := http.ReadResponse(reader, nil)
		switch {
		case err == nil && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols:
			resp.Body.Close() // the answer is still to come
			continue
		case err == nil:
			// The status says it all, but to close with bytes unread is a reset.
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return resp.StatusCode, resp.Header, nil
		case source.err != nil:
			return 0, nil, source.err
		case !errors.Is(err, io.ErrUnexpectedEOF):
			return 0, nil, err
		case bounded.N == maxAnswer:
			return 0, nil, errors.New("closed the connection without an answer")
		case bounded.N == 0:
			return 0, nil, fmt.Errorf("answered with more than %d KiB of header", maxAnswer>>10)
		default:
			return 0, nil, errors.New("closed the connection in the middle of its answer")
		}
	}
}

// failing keeps the error of a reader, except its end: bufio makes a line of what
// came before.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// exchange sends something, if anything, and waits until what comes back
// contains what is expected. Nothing expected is anything.
func exchange(conn io.ReadWriter, send, expect string) error {
	if send != "" {
		if _, err := io.WriteString(conn, send); err != nil {
			return err
		}
	}
	var answer []byte
	part := make([]byte, 4<<10)
	for len(answer) < maxAnswer {
		n, err := conn.Read(part[:min(len(part), maxAnswer-len(answer))])
		from := max(0, len(answer)-len(expect)) // a match may have begun before
		answer = append(answer, part[:n]...)
		switch {
		case n > 0 && bytes.Contains(answer[from:], []byte(expect)):
			return nil
		case err == nil:
		case len(answer) > 0:
			return missing(expect, answer)
		case errors.Is(err, io.EOF):
			return errors.New("closed the connection without an answer")
		default:
			return err
		}
	}
	return missing(expect, answer)
}

func missing(expect string, answer []byte) error {
	line, _, _ := bytes.Cut(answer[:min(len(answer), 4*maxQuote)], []byte("\n"))
	return fmt.Errorf("no %s in the answer (first line: %s)", quote(expect), quote(strings.TrimSuffix(string(line), "\r")))
}

// quote shows the beginning of a text.
func quote(text string) string {
	if short := []rune(text); len(short) > maxQuote {
		return fmt.Sprintf("%q…", string(short[:maxQuote]))
	}
	return fmt.Sprintf("%q", text)
}

// part ends a conversation in the ordinary way: says that this was all, and
// takes what is still said. To close with something unread is a reset, which
// servers log.
func part(ctx context.Context, conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		_ = secure.CloseWrite()
		conn = secure.NetConn()
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	until := time.Now().Add(partFor)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	_ = conn.SetReadDeadline(until)
	_, _ = io.CopyN(io.Discard, conn, maxAnswer)
}
