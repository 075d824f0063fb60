package hello

import (
	"bytes"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// What programs have sent that people use.
var realHellos = map[string]string{
	"openssl-3.0.hex":        "git.example.org",
	"openssl-3.0-tls1.1.hex": "git.example.org",
	"openssl-3.0-noname.hex": "",
	"curl-7.88.hex":          "git.example.org",
	"chromium-156.hex":       "git.example.org",
}

func TestHellosOfRealClients(t *testing.T) {
	for file, want := range realHellos {
		t.Run(file, func(t *testing.T) {
			b := captured(t, file)[0]
			checkName(t, b, want)
			message := messageOf(b)
			for range 20 {
				checkName(t, inRecords(message, func() int { return 1 + rand.IntN(len(message)) }), want)
				checkName(t, inRecords(message, func() int { return 1 + rand.IntN(40) }), want)
			}
			checkName(t, inRecords(message, func() int { return 1 }), want)
		})
	}
}

func TestHellosOfCryptoTLS(t *testing.T) {
	protocols := make([]string, 100)
	for i := range protocols {
		protocols[i] = strings.Repeat("p", 200)
	}
	for name, test := range map[string]struct {
		config *tls.Config
		want   string
	}{
		"as it is":         {&tls.Config{ServerName: "git.example.org"}, "git.example.org"},
		"in capitals":      {&tls.Config{ServerName: "Git.EXAMPLE.org"}, "git.example.org"},
		"dot at the end":   {&tls.Config{ServerName: "git.example.org."}, "git.example.org"},
		"an address":       {&tls.Config{ServerName: "10.0.0.1"}, ""}, // crypto/tls sends none
		"TLS 1.2":          {&tls.Config{ServerName: "git.example.org", MaxVersion: tls.VersionTLS12}, "git.example.org"},
		"TLS 1.0":          {&tls.Config{ServerName: "git.example.org", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}, "git.example.org"},
		"no post-quantum":  {&tls.Config{ServerName: "git.example.org", CurvePreferences: []tls.CurveID{tls.X25519}}, "git.example.org"},
		"ACME by TLS ALPN": {&tls.Config{ServerName: "git.example.org", NextProtos: []string{"acme-tls/1"}}, "git.example.org"},
		"20 kB":            {&tls.Config{ServerName: "git.example.org", NextProtos: protocols}, "git.example.org"},
		"no name":          {&tls.Config{}, ""},
		"encrypted":        {&tls.Config{ServerName: "secret.example.org", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigList(t, "public.example.net")}, "public.example.net"},
	} {
		t.Run(name, func(t *testing.T) {
			test.config.InsecureSkipVerify = true
			b := firstFlight(t, test.config)
			message := messageOf(b)
			checkName(t, b, test.want)
			checkName(t, inRecords(message, func() int { return 1 + rand.IntN(1000) }), test.want)
			// What comes behind it is somebody else's.
			checkName(t, inRecords(message+"more", func() int { return 100 }), test.want)
			checkName(t, append(slices.Clip(b), 23, 3, 3, 0, 1, 0), test.want)
		})
	}
}

func TestNames(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]string{
		"localhost":              "localhost",
		"under_score.example":    "under_score.example",
		"XN--BCHER-KVA.example.": "xn--bcher-kva.example",
		"10.example":             "10.example",
		"1234567890.example":     "1234567890.example",
		"4chan":                  "4chan",
		label:                    label,
		label + "." + label + "." + label + "." + label[:61]: label + "." + label + "." + label + "." + label[:61],

		"10.0.0.1":            "",
		"10.0.0.1.":           "",
		"167772161":           "",
		"2001:db8::1":         "",
		"[2001:db8::1]":       "",
		"git.example.org\x00": "",
		"git\x00.evil.org":    "",
		"git.example.org:22":  "",
		"bücher.example":      "",
		"*.example.org":       "",
		"a b":                 "",
		".example.org":        "",
		"a..b":                "",
		"a..":                 "",
		".":                   "",
		label + "a":           "",
		label + "." + label + "." + label + "." + label[:62]: "",
	} {
		checkName(t, inRecords(helloMessage(extension(extServerName, serverNames(nameTypeHost, name))), whole), want)
	}
}

func TestExtensionsAroundTheName(t *testing.T) {
	name := extension(extServerName, serverNames(nameTypeHost, "git.example.org"))
	grease := extension(0x3a3a, "")
	for what, message := range map[string]string{
		"first":               helloMessage(name, grease),
		"last":                helloMessage(grease, extension(16, "x"), name),
		"among other types":   helloMessage(extension(extServerName, vector(2, "\x07"+vector(2, "x")+"\x00"+vector(2, "git.example.org")))),
		"repeated by another": helloMessage(name, grease, grease), // who has it twice is for the server to judge
	} {
		t.Run(what, func(t *testing.T) { checkName(t, inRecords(message, whole), "git.example.org") })
	}
	for what, message := range map[string]string{
		"without extensions":    handshake("\x03\x03" + random + "\x00" + vector(2, "\x13\x01") + vector(1, "\x00")),
		"with none":             helloMessage(),
		"without a name":        helloMessage(grease),
		"of another type alone": helloMessage(extension(extServerName, serverNames(7, "git.example.org"))),
	} {
		t.Run(what, func(t *testing.T) { checkName(t, inRecords(message, whole), "") })
	}
}

func TestWhatIsNoHello(t *testing.T) {
	name := serverNames(nameTypeHost, "git.example.org")
	ext := extension(extServerName, name)
	good := helloMessage(ext)
	body := good[typeLen:]
	for what, test := range map[string]struct {
		b    string
		want error
		at   int // bytes that it takes to know
	}{
		"HTTP":                {"GET / HTTP/1.1\r\n\r\n", ErrNotTLS, 1},
		"SSH":                 {"SSH-2.0-OpenSSH_9.2\r\n", ErrNotTLS, 1},
		"SSLv2 hello":         {"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", ErrNotTLS, 1},
		"application data":    {"\x17\x03\x03\x00\x05hello", ErrNotTLS, 1},
		"alert":               {"\x15\x03\x01\x00\x02\x02\x28", ErrNotTLS, 1},
		"version 2.0":         {"\x16\x02\x00", ErrNotTLS, 2},
		"version 4.0":         {"\x16\x04\x00", ErrNotTLS, 2},
		"server hello":        {"\x16\x03\x03\x00\x30\x02\x00\x00\x2c", ErrNotTLS, 6},
		"empty record":        {"\x16\x03\x01\x00\x00\x16", ErrBad, 5},
		"large record":        {"\x16\x03\x01\x40\x01\x01", ErrBad, 5},
		"empty second record": {inRecords(good, func() int { return 20 })[:25] + "\x16\x03\x03\x00\x00", ErrBad, 30},
		"alert in between":    {inRecords(good, func() int { return 20 })[:25] + "\x15\x03\x03\x00\x02\x01\x00", ErrBad, 26},
		"no body":             {inRecords(handshake(""), whole), ErrBad, 0},
		"body of one byte":    {inRecords(handshake("\x03"), whole), ErrBad, 0},
		"session ID too long": {inRecords(handshake("\x03\x03"+random+"\xff"), whole), ErrBad, 0},
		"half a cipher suite": {inRecords(handshake("\x03\x03"+random+"\x00"+vector(2, "\x13")+vector(1, "\x00")), whole), ErrBad, 0},
		"something behind":    {inRecords(handshake(body+"x"), whole), ErrBad, 0},
		"something missing":   {inRecords(handshake(body[:len(body)-1]), whole), ErrBad, 0},
		"two names":           {inRecords(helloMessage(ext, ext), whole), ErrBad, 0},
		"two names in one":    {inRecords(helloMessage(extension(extServerName, vector(2, name[2:]+name[2:]))), whole), ErrBad, 0},
		"no name in the list": {inRecords(helloMessage(extension(extServerName, vector(2, ""))), whole), ErrBad, 0},
		"no list":             {inRecords(helloMessage(extension(extServerName, "")), whole), ErrBad, 0}, // as servers answer
		"empty name":          {inRecords(helloMessage(extension(extServerName, serverNames(nameTypeHost, ""))), whole), ErrBad, 0},
		"behind the list":     {inRecords(helloMessage(extension(extServerName, name+"x")), whole), ErrBad, 0},
		"list too long":       {inRecords(helloMessage(extension(extServerName, "\x00\xff"+name[2:])), whole), ErrBad, 0},
		"name too long":       {inRecords(helloMessage(extension(extServerName, vector(2, "\x00\x00\xff"+"git"))), whole), ErrBad, 0},
		"last one too long":   {inRecords(helloMessage(ext, "\x00\x01\x00\xffx"), whole), ErrBad, 0},
		"extension too long":  {inRecords(helloMessage("\x00\x00\x00\xff"+name), whole), ErrBad, 0},
		"too large":           {"\x16\x03\x01\x40\x00\x01\x00\x80\x00", ErrBad, 9},
	} {
		t.Run(what, func(t *testing.T) {
			at := test.at
			if at == 0 {
				at = len(test.b)
			}
			if name, err := TLS([]byte(test.b[:at-1])); name != "" || !errors.Is(err, ErrShort) {
				t.Errorf("%d bytes: %q, %v; want %v", at-1, name, err, ErrShort)
			}
			for i := at; i <= len(test.b); i++ {
				if name, err := TLS([]byte(test.b[:i])); name != "" || !errors.Is(err, test.want) {
					t.Fatalf("%d bytes: %q, %v; want %v", i, name, err, test.want)
				}
			}
		})
	}
}

// A hello may take MaxHello bytes of the wire, and not one more.
func TestTheLargestHello(t *testing.T) {
	name := extension(extServerName, serverNames(nameTypeHost, "git.example.org"))
	least := len(helloMessage(name, extension(21, "")))
	for _, fragment := range []int{maxFragment, 1000, 3, 1} {
		size := MaxHello
		for size+(size+fragment-1)/fragment*recordHeader > MaxHello {
			size--
		}
		inFragments := func(size int) []byte {
			return []byte(inRecords(helloMessage(name, extension(21, strings.Repeat("\x00", size-least))), func() int { return fragment }))
		}
		checkName(t, inFragments(size), "git.example.org")
		if name, err := checkPrefixes(t, inFragments(size+1)); name != "" || !errors.Is(err, ErrBad) {
			t.Errorf("%d bytes in fragments of %d: %q, %v; want %v", size+1, fragment, name, err, ErrBad)
		}
	}
}

func TestAHelloInOneRecordTakesNoMemoryButForItsName(t *testing.T) {
	b := captured(t, "chromium-156.hex")[0]
	if n := testing.AllocsPerRun(100, func() { _, _ = TLS(b) }); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = TLS(b[:len(b)-1]) }); n > 0 {
		t.Errorf("%v allocations for a part of it, want none", n)
	}
}

func FuzzTLS(f *testing.F) {
	for file := range realHellos {
		b := captured(f, file)[0]
		f.Add(b)
		f.Add([]byte(inRecords(messageOf(b), func() int { return 50 })))
	}
	f.Add([]byte(inRecords(helloMessage(extension(extServerName, serverNames(nameTypeHost, "a.b"))), whole)))
	f.Add([]byte("\x16\x03\x01\x40\x00\x01\x00\x80\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		name, err := checkPrefixes(t, b)
		if !bytes.Equal(b, before) {
			t.Error("the bytes were written to")
		}
		asked, ok := nameForCryptoTLS(b)
		// These are refused here and not there: alerts before or within the hello,
		// versions other than 3.x, and a size.
		if ok && plainRecords(b) && len(b) <= MaxHello {
			if want := dnsName(asked); name != want || err != nil {
				t.Errorf("%q, %v; want %q: crypto/tls reads %q", name, err, want, asked)
			}
		}
	})
}

func BenchmarkTLS(b *testing.B) {
	chromium := captured(b, "chromium-156.hex")[0]
	inTwo := []byte(inRecords(messageOf(chromium), func() int { return 1000 }))
	for _, bench := range []struct {
		name string
		b    []byte
	}{{"Chromium", chromium}, {"Chromium, half of it", chromium[:1000]}, {"Chromium, in two records", inTwo}, {"curl", captured(b, "curl-7.88.hex")[0]}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = TLS(bench.b)
			}
		})
	}
}

// checkName demands that b has the name, and that each part of it before that
// says to wait.
func checkName[T string | []byte](t *testing.T, b T, want string) {
	t.Helper()
	if name, err := checkPrefixes(t, []byte(b)); name != want || err != nil {
		t.Errorf("%q, %v; want %q", name, err, want)
	}
}

// checkPrefixes returns the answer for b, having seen that bytes that come one
// by one lead to the same: first to wait, but never for more than MaxHello,
// and once there is an answer it stays.
func checkPrefixes(t *testing.T, b []byte) (string, error) {
	t.Helper()
	name, err := TLS(b)
	decided := false
	for i := 0; i <= len(b); i += step(i, len(b)) {
		switch n, e := TLS(b[:i]); {
		case errors.Is(e, ErrShort):
			if decided || n != "" || i >= MaxHello {
				t.Fatalf("%d of %d bytes: %q, %v", i, len(b), n, e)
			}
		case n != name || !errors.Is(e, err):
			t.Fatalf("%d of %d bytes: %q, %v; in the end %q, %v", i, len(b), n, e, name, err)
		default:
			decided = true
		}
	}
	return name, err
}

// step goes through the beginning and the end byte by byte, and through the
// middle of what is long in steps.
func step(i, size int) int {
	if i < 300 || size-i < 300 {
		return 1
	}
	return max(1, size/1000)
}

// nameForCryptoTLS is the name that a server of crypto/tls is asked for by b.
func nameForCryptoTLS(b []byte) (name string, ok bool) {
	stop := errors.New("that is all")
	_ = tls.Server(source{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = info.ServerName, true
		return nil, stop
	}}).Handshake()
	return name, ok
}

// plainRecords reports whether b has records of handshakes alone, of version
// 3.x.
func plainRecords(b []byte) bool {
	for len(b) >= recordHeader {
		if b[0] != recordHandshake || b[1] != 3 {
			return false
		}
		b = b[min(recordHeader+int(binary.BigEndian.Uint16(b[3:])), len(b)):]
	}
	return true
}

var hostname = regexp.MustCompile(`^([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}$`)

// dnsName is what is made of a name that was sent.
func dnsName(sent string) string {
	s := strings.ToLower(sent)
	last := s[strings.LastIndexByte(s, '.')+1:]
	if len(s) > 253 || !hostname.MatchString(s) || strings.Trim(last, "0123456789") == "" {
		return ""
	}
	return s
}

// A source is a connection on which everything has already been received.
type source struct {
	net.Conn
	r io.Reader
}

func (s source) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s source) Write(b []byte) (int, error) { return len(b), nil }
func (s source) Close() error                { return nil }
func (s source) SetWriteDeadline(time.Time) error {
	return nil
}

// firstFlight is what a client of crypto/tls says first.
func firstFlight(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		_ = tls.Client(client, config).Handshake()
	}()
	// Records of a flight come in one write, or one by one.
	var b []byte
	for {
		part := make([]byte, 64<<10)
		n, err := server.Read(part)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, part[:n]...)
		if m := messageOf(b); len(m) >= typeLen && len(m) == typeLen+bodyLen([]byte(m)) {
			return b
		}
	}
}

// messageOf takes the records off a message.
func messageOf(b []byte) string {
	var message []byte
	for len(b) != 0 {
		size := int(binary.BigEndian.Uint16(b[3:]))
		message = append(message, b[recordHeader:recordHeader+size]...)
		b = b[recordHeader+size:]
	}
	return string(message)
}

// inRecords puts a message into records of the sizes that fragment says.
func inRecords(message string, fragment func() int) string {
	var b []byte
	for len(message) != 0 {
		n := min(fragment(), len(message), maxFragment)
		b = append(b, recordHandshake, 3, byte(1+rand.IntN(4)))
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		b = append(b, message[:n]...)
		message = message[n:]
	}
	return string(b)
}

func whole() int { return maxFragment }

var random = strings.Repeat("\xab", 32)

func helloMessage(extensions ...string) string {
	return handshake("\x03\x03" + random + vector(1, "session") + vector(2, "\x13\x01\x13\x02") + vector(1, "\x00") + vector(2, strings.Join(extensions, "")))
}

func handshake(body string) string { return "\x01" + vector(3, body) }

func extension(kind uint16, data string) string {
	return string([]byte{byte(kind >> 8), byte(kind)}) + vector(2, data)
}

func serverNames(kind byte, name string) string {
	return vector(2, string([]byte{kind})+vector(2, name))
}

// vector puts the length of s, which takes n bytes, in front of it.
func vector(n int, s string) string {
	b := make([]byte, 8)
	binary.BigEndian.PutUint64(b, uint64(len(s)))
	return string(b[8-n:]) + s
}

// echConfigList is what a provider publishes who is known by a public name
// (RFC 9849, section 4).
func echConfigList(t *testing.T, publicName string) []byte {
	key, err := ecdh.X25519().GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	contents := "\x07" + "\x00\x20" + vector(2, string(key.PublicKey().Bytes())) + vector(2, "\x00\x01\x00\x01") + "\x20" + vector(1, publicName) + vector(2, "")
	return []byte(vector(2, "\xfe\x0d"+vector(2, contents)))
}
