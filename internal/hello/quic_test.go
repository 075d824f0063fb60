package hello

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// RFC 9001, appendix A.2, and RFC 9369, appendix A.2.
func TestInitialPacketsOfTheStandards(t *testing.T) {
	for _, file := range []string{"rfc9001.hex", "rfc9369.hex"} {
		t.Run(file, func(t *testing.T) { checkInitials(t, captured(t, file), "example.com") })
	}
}

// RFC 9001, appendix A.1, and RFC 9369, appendix A.1.
func TestInitialKeysOfTheStandards(t *testing.T) {
	dcid := []byte{0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08}
	for version, want := range map[uint32]string{version1: "fa044b2f42a3fd3b46fb255c", version2: "91f73e2351d8fa91660e909f"} {
		keys := newInitialKeys(version, dcid)
		if got := hex.EncodeToString(keys.iv[:]); got != want {
			t.Errorf("version %#x: initialization vector %s, want %s", version, got, want)
		}
	}
}

func TestMACIsThatOfTheStandardLibrary(t *testing.T) {
	for n := range macMessage + 1 {
		message := []byte(strings.Repeat("m", n))
		key := []byte(strings.Repeat("k", macMessage-n))
		want := hmac.New(sha256.New, key)
		want.Write(message)
		if got := mac(key, message); !bytes.Equal(got[:], want.Sum(nil)) {
			t.Errorf("a key of %d bytes, a message of %d: %x", len(key), n, got)
		}
	}
}

func TestFirstFlightOfChromium(t *testing.T) {
	datagrams := captured(t, "chromium-156-quic.hex")
	checkInitials(t, datagrams[:2], "git.example.org")
	for range 50 {
		checkInitials(t, shuffled(datagrams), "git.example.org")
	}
	// The first alone does not have it all, and neither do those sent again.
	for _, some := range [][]int{{0}, {1}, {0, 0, 0}, {2, 4}, {5}} {
		var q Initials
		for _, i := range some {
			if name, done, err := q.Add(datagrams[i]); name != "" || done || err != nil {
				t.Errorf("datagrams %v: %q, %v, %v", some, name, done, err)
			}
		}
	}
	var q Initials
	damaged := bytes.Clone(datagrams[0])
	damaged[100] ^= 1
	for i, d := range [][]byte{damaged, datagrams[5], datagrams[1], datagrams[0]} {
		add(t, &q, d)
		if want := i >= 2; q.Begun() != want {
			t.Errorf("after %d datagrams: begun %v, want %v", i+1, q.Begun(), want)
		}
	}
	// What was sent again has other pieces, which also add up.
	checkInitials(t, [][]byte{datagrams[1], datagrams[2], datagrams[4], datagrams[3]}, "git.example.org")
}

func TestFramesOfAnInitial(t *testing.T) {
	message := helloMessage(extension(extServerName, serverNames(nameTypeHost, "git.example.org")))
	ack := "\x02\x10\x00\x01\x01\x02\x03"
	ecn := "\x03\x40\x10\x00\x00\x01\x01\x02\x03"
	other := crypto(message, 10, 30)
	other = other[:len(other)-1] + "?"
	far := string(binary.BigEndian.AppendUint32([]byte{0x06}, 0x80000000|MaxHello))
	for what, test := range map[string]struct {
		payload string
		want    string
		err     error
	}{
		"in one piece":          {crypto(message, 0, len(message)), "git.example.org", nil},
		"among others":          {"\x01" + ack + ecn + crypto(message, 0, len(message)) + "\x00", "git.example.org", nil},
		"two pieces":            {crypto(message, 0, 20) + crypto(message, 20, len(message)), "git.example.org", nil},
		"out of order":          {crypto(message, 20, len(message)) + "\x01" + crypto(message, 0, 20), "git.example.org", nil},
		"overlapping":           {crypto(message, 30, len(message)) + crypto(message, 10, 40) + crypto(message, 0, 20), "git.example.org", nil},
		"one within another":    {crypto(message, 10, 20) + crypto(message, 0, len(message)), "git.example.org", nil},
		"one longer":            {crypto(message, 0, 20) + crypto(message, 0, len(message)), "git.example.org", nil},
		"one empty":             {crypto(message, 5, 5) + crypto(message, 0, len(message)), "git.example.org", nil},
		"more than the hello":   {crypto(message+"more", 0, len(message)+4), "git.example.org", nil},
		"closed":                {crypto(message, 0, 20) + "\x1c\x01\x06\x03why", "", nil},
		"a gap":                 {crypto(message, 0, 20) + crypto(message, 21, len(message)), "", nil},
		"not its beginning":     {crypto(message, 1, len(message)), "", nil},
		"not its end":           {crypto(message, 0, len(message)-1), "", nil},
		"PING":                  {"\x01", "", nil},
		"two that differ":       {other + crypto(message, 0, len(message)), "", ErrBad},
		"beyond what is taken":  {far + "\x01x", "", ErrBad},
		"beyond what can be":    {"\x06\xff\xff\xff\xff\xff\xff\xff\xff\x01x", "", ErrBad},
		"too large a hello":     {crypto("\x01\x00\x80\x00", 0, 4), "", ErrBad},
		"no hello":              {crypto("\x02\x00\x00\x01", 0, 4), "", ErrBad},
		"no hello, first byte":  {crypto("\x02", 0, 1), "", ErrBad},
		"STREAM":                {"\x08\x00x", "", ErrBad},
		"CRYPTO cut off":        {"\x06\x00\x7f\xff", "", ErrBad},
		"ACK without end":       {"\x02\x10\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00" + strings.Repeat("\x01", 1000), "", ErrBad},
		"no name":               {crypto(helloMessage(), 0, len(helloMessage())), "", nil},
		"malformed":             {crypto(handshake("\x03\x03"), 0, 6), "", ErrBad},
		"more pieces than some": {pieces(helloMessage(extension(1, strings.Repeat("x", 4*maxPieces)))), "", ErrBad},
	} {
		t.Run(what, func(t *testing.T) {
			var q Initials
			for range 2 { // the second says the same
				name, done, err := q.Add(sealed(version1, "destination", 0, test.payload))
				if done != (test.want != "" || what == "no name") || name != test.want || !errors.Is(err, test.err) {
					t.Errorf("%q, %v, %v; want %q, %v", name, done, err, test.want, test.err)
				}
			}
		})
	}
}

func TestPacketsOfADatagram(t *testing.T) {
	message := helloMessage(extension(extServerName, serverNames(nameTypeHost, "git.example.org")))
	all := sealed(version1, "destination", 0, crypto(message, 0, len(message)))
	half := sealed(version1, "destination", 1, crypto(message, 0, 50))
	rest := sealed(version1, "destination", 2, crypto(message, 50, len(message)))
	zeroRTT := longHeader(version1, 1, "destination", strings.Repeat("0", 100))
	handshake := longHeader(version1, 2, "destination", strings.Repeat("h", 100))
	damaged := bytes.Clone(all)
	damaged[200] ^= 1
	greased := sealed(version1, "destination", 0, crypto(message, 0, len(message)), func(first *byte) { *first &^= 0x40 })

	for what, datagrams := range map[string][][]byte{
		"one":                       {all},
		"two":                       {slices.Concat(half, rest)},
		"two, out of order":         {slices.Concat(rest, half)},
		"behind 0-RTT":              {slices.Concat(zeroRTT, all)},
		"between others":            {slices.Concat(handshake, all, zeroRTT)},
		"0-RTT overtakes":           {zeroRTT, all},
		"0-RTT in between":          {half, zeroRTT, rest},
		"a short header behind":     {slices.Concat(all, []byte("\x40short"))},
		"QUIC bit cleared":          {greased},
		"damaged, and sent again":   {damaged, all},
		"something else in between": {half, []byte("\x40short"), []byte("\xc0\xff\x00\x00\x1d\x00\x00draft"), {}, {0x80}, []byte("hello"), rest},
		"version 2":                 {sealed(version2, "destination", 7, crypto(message, 0, len(message)))},
		"all again":                 {half, half, rest, rest},
		"version 2 from now on":     {half, sealed(version2, "destination", 1, crypto(message, 50, len(message)))},
		"an unknown one behind":     {slices.Concat(half, header(0xc0, 0x1a2a3a4a, "destination")), rest},
		"no destination":            {sealed(version1, "", 0, crypto(message, 0, len(message)))},
		"large packet number":       {sealed(version1, "destination", 0xffff_fff0, crypto(message, 0, len(message)))},
		"token":                     {withToken(t, strings.Repeat("t", 300), crypto(message, 0, len(message)))},
		"the server has an ID":      {half, sealedWith(newInitialKeys(version1, []byte("destination")), version1, "of server", 3, "", crypto(message, 50, len(message)))},
		"after a Retry":             {half, sealed(version1, "by retry", 1, crypto(message, 0, 50)), sealed(version1, "by retry", 2, crypto(message, 50, len(message)))},
		"after a Retry, mixed":      {half, sealed(version1, "by retry", 2, crypto(message, 50, len(message)))},
		"and the server has an ID":  {half, sealed(version1, "by retry", 1, crypto(message, 0, 50)), sealedWith(newInitialKeys(version1, []byte("by retry")), version1, "of server", 3, "", crypto(message, 50, len(message)))},
		"a late one of the first":   {half, sealed(version1, "by retry", 1, "\x01"), sealed(version1, "by other", 1, "\x01"), rest},
	} {
		t.Run(what, func(t *testing.T) { checkInitials(t, datagrams, "git.example.org") })
	}

	// RFC 9000, section 12.2: what has another connection ID is ignored.
	var q Initials
	if name, done, err := q.Add(slices.Concat(half, sealed(version1, "another", 0, crypto(message, 50, len(message))))); name != "" || done || err != nil {
		t.Errorf("a packet of another connection behind: %q, %v, %v", name, done, err)
	}
}

func TestTheFirstDatagramSaysWhetherItIsQUIC(t *testing.T) {
	for what, test := range map[string]struct {
		b    string
		want error
	}{
		"nothing":             {"", ErrNotQUIC},
		"DNS":                 {"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www", ErrNotQUIC},
		"DTLS":                {"\x16\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10", ErrNotQUIC},
		"short header":        {"\x40" + strings.Repeat("x", 40), ErrNotQUIC},
		"version negotiation": {"\x80\x00\x00\x00\x00\x01x\x01y\x00\x00\x00\x01", ErrNotQUIC},
		"Retry":               {"\xf0\x00\x00\x00\x01\x01x\x01ytoken and tag", ErrNotQUIC},
		"Retry of version 2":  {"\xc0\x6b\x33\x43\xcf\x01x\x01ytoken and tag", ErrNotQUIC},
		"Handshake":           {string(longHeader(version1, 2, "destination", strings.Repeat("h", 100))), ErrNotQUIC},
		"cut off":             {string(captured(t, "rfc9001.hex")[0][:1199]), ErrNotQUIC},
		"long connection ID":  {string(sealed(version1, strings.Repeat("d", 21), 0, "\x01")), ErrNotQUIC},
		"IDs cut off":         {"\xc0\x00\x00\x00\x01\x08dest", ErrNotQUIC},
		"and of the source":   {"\xc0\x00\x00\x00\x01\x01d\x15" + strings.Repeat("s", 21) + "\x00\x40\x20" + strings.Repeat("i", 32), ErrNotQUIC},
		"draft 29":            {"\xc0\xff\x00\x00\x1d\x08destinat\x00\x00", ErrUnknownVersion},
		"greased version":     {"\xc0\x1a\x2a\x3a\x4a\x08destinat\x00\x00", ErrUnknownVersion},
		"a long ID, unknown":  {"\x80\x1a\x2a\x3a\x4a\xff" + strings.Repeat("d", 255) + "\x00", ErrUnknownVersion},
	} {
		t.Run(what, func(t *testing.T) {
			var q Initials
			for range 2 {
				if name, done, err := q.Add([]byte(test.b)); name != "" || done || !errors.Is(err, test.want) {
					t.Errorf("%q, %v, %v; want %v", name, done, err, test.want)
				}
			}
		})
	}
}

func TestInitialsAreBounded(t *testing.T) {
	message := helloMessage(extension(extServerName, serverNames(nameTypeHost, "git.example.org")), extension(21, strings.Repeat("\x00", 20<<10)))
	half := crypto(message, 0, len(message)/2)
	rest := crypto(message, len(message)/2, len(message))
	ping := sealed(version1, "destination", 0, "\x01")
	junk := bytes.Clone(ping)
	junk[len(junk)-1] ^= 1
	for what, datagram := range map[string][]byte{"that say nothing": ping, "that do not decrypt": junk, "of another kind": []byte("hello"), "sent again": sealed(version1, "destination", 0, half)} {
		var q Initials
		var err error
		n := 0
		for _, _, err = q.Add(sealed(version1, "destination", 0, half)); err == nil; n++ {
			_, _, err = q.Add(datagram)
		}
		if !errors.Is(err, ErrBad) || n != MaxInitials {
			t.Errorf("%d datagrams %s: %v; want %d", n, what, err, MaxInitials)
		}
		// The last one may be the one that matters.
		q = Initials{}
		_, _, err = q.Add(sealed(version1, "destination", 0, half))
		for range MaxInitials - 2 {
			_, _, err = q.Add(datagram)
		}
		if err != nil {
			t.Fatal(err)
		}
		if name, done, err := q.Add(sealed(version1, "destination", 0, rest)); name != "git.example.org" || !done || err != nil {
			t.Errorf("%q, %v, %v", name, done, err)
		}
	}

	var q Initials
	if _, _, err := q.Add(slices.Concat(slices.Repeat([][]byte{longInitial("x")}, MaxInitials+1)...)); !errors.Is(err, ErrBad) {
		t.Errorf("one datagram of too many packets: %v", err)
	}
	// The same bytes in ever other pieces.
	q = Initials{}
	var err error
	for i := range MaxInitials {
		if _, _, err = q.Add(sealed(version1, "destination", 0, crypto(message, i, 4000))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrBad) || len(q.data) > MaxHello {
		t.Errorf("the same again and again: %v, %d bytes kept", err, len(q.data))
	}
}

func TestConnectionIDs(t *testing.T) {
	for _, test := range []struct {
		packet     string
		dcid, scid string
		ok         bool
	}{
		{"\xc0\x00\x00\x00\x01\x03abc\x02defg", "abc", "de", true},
		{"\x80\x12\x34\x56\x78\x00\x00", "", "", true},
		{"\x80\x00\x00\x00\x00\x01a\x00", "a", "", true}, // Version Negotiation
		{"\xc0\x00\x00\x00\x01\xff" + strings.Repeat("d", 255) + "\xff" + strings.Repeat("s", 255), strings.Repeat("d", 255), strings.Repeat("s", 255), true},
		{"\x40\x00\x00\x00\x01\x03abc\x02de", "", "", false},
		{"\xc0\x00\x00\x00\x01\x03abc\x02d", "", "", false},
		{"\xc0\x00\x00\x00\x01\x03abc", "", "", false},
		{"\xc0\x00\x00\x00\x01", "", "", false},
		{"\xc0", "", "", false},
		{"", "", "", false},
	} {
		dcid, scid, ok := LongHeaderIDs([]byte(test.packet))
		if string(dcid) != test.dcid || string(scid) != test.scid || ok != test.ok {
			t.Errorf("%q: %q, %q, %v", test.packet, dcid, scid, ok)
		}
	}
}

func TestPacketsThatMayBeginAConnection(t *testing.T) {
	for packet, want := range map[string]bool{
		"\xc0\x00\x00\x00\x01": true,
		"\xd0\x00\x00\x00\x01": false, // 0-RTT
		"\xe0\x00\x00\x00\x01": false,
		"\xf0\x00\x00\x00\x01": false,
		"\xd0\x6b\x33\x43\xcf": true,
		"\xc0\x6b\x33\x43\xcf": false, // Retry
		"\xe0\x6b\x33\x43\xcf": false,
		"\xf0\xff\x00\x00\x1d": true, // who knows
		"\x80\x00\x00\x00\x00": false,
		"\x40\x00\x00\x00\x01": false,
		"\xc0\x00\x00\x00":     false,
		"":                     false,
	} {
		if got := Initial([]byte(packet)); got != want {
			t.Errorf("%q: %v", packet, got)
		}
	}
	for _, d := range slices.Concat(captured(t, "chromium-156-quic.hex"), captured(t, "rfc9001.hex"), captured(t, "rfc9369.hex")) {
		if !Initial(d) {
			t.Errorf("%x...", d[:20])
		}
	}
}

func TestShortHeaders(t *testing.T) {
	for packet, want := range map[string]bool{
		"\x40" + strings.Repeat("x", 20): true,
		"\x7f" + strings.Repeat("x", 99): true,
		"\x40" + strings.Repeat("x", 19): false,
		"\xc0" + strings.Repeat("x", 20): false, // long
		"\x00" + strings.Repeat("x", 20): false, // QUIC bit cleared, or something else
		"":                               false,
	} {
		if got := ShortHeader([]byte(packet)); got != want {
			t.Errorf("%q: %v", packet, got)
		}
	}
}

// A hello is read the same from CRYPTO frames, whatever its pieces and their
// order, as from TLS records, which FuzzTLS holds against crypto/tls.
func FuzzQUIC(f *testing.F) {
	for file := range realHellos {
		f.Add([]byte(messageOf(captured(f, file)[0])), []byte("\x03abcdefgh"))
	}
	for _, datagram := range captured(f, "chromium-156-quic.hex") {
		f.Add(datagram, []byte{0})
	}
	f.Add([]byte(crypto(helloMessage(), 0, len(helloMessage()))+"\x02\x10\x00\x01\x01\x02\x03\x1c\x01\x06\x03why"), []byte{1})
	f.Fuzz(func(t *testing.T, b, plan []byte) {
		// As they are: a datagram, and the frames of one. Then a hello.
		var q Initials
		add(t, &q, b)
		add(t, &q, b)
		q = Initials{}
		add(t, &q, sealed(version1, "destination", 0, string(b)))
		add(t, &q, sealed(version1, "destination", 1, string(b)))

		if len(b) > MaxHello/2 || len(b) == 0 || len(plan) == 0 {
			return
		}
		if len(b) >= typeLen {
			if n := typeLen + bodyLen(b); n <= MaxHello && n > MaxHello-2*recordHeader {
				return // too large with record headers alone
			}
		}
		version := uint32(version1)
		if plan[0]&1 != 0 {
			version = version2
		}
		// The plan says what is sent before the rest is.
		plan = plan[:min(len(plan), 24)]
		var datagrams [][]byte
		frames := ""
		for i, c := range plan {
			from := len(b) * int(c) / 256
			to := min(len(b), from+1+len(b)*int(plan[len(plan)-1-i])/256/32)
			frames += crypto(string(b), from, to)
			if c&2 != 0 {
				datagrams = append(datagrams, sealed(version, "destination", uint32(i), frames))
				frames = ""
			}
		}
		datagrams = append(datagrams, sealed(version, "destination", 90, frames+crypto(string(b), len(b)/2, len(b))), sealed(version, "destination", 91, crypto(string(b), 0, len(b)/2)))
		q = Initials{}
		var name string
		var done bool
		var err error
		for _, d := range datagrams {
			name, done, err = add(t, &q, d)
		}
		want, wantErr := TLS([]byte(inRecords(string(b), whole)))
		switch {
		case errors.Is(wantErr, ErrShort):
			wantErr = nil
		case errors.Is(wantErr, ErrNotTLS):
			wantErr = ErrBad
		default:
		}
		if short := len(b) < typeLen || len(b) < typeLen+bodyLen(b); name != want || !errors.Is(err, wantErr) || done != (err == nil && !short) {
			t.Errorf("%q, %v, %v; TLS reads %q, %v", name, done, err, want, wantErr)
		}
	})
}

func BenchmarkInitials(b *testing.B) {
	flight := captured(b, "chromium-156-quic.hex")[:2]
	for _, bench := range []struct {
		name      string
		datagrams [][]byte
	}{
		{"Chromium, two datagrams", flight},
		{"RFC 9001, one datagram", captured(b, "rfc9001.hex")},
		{"does not decrypt", [][]byte{longInitial(strings.Repeat("x", 1100))}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var q Initials
				for _, d := range bench.datagrams {
					_, _, _ = q.Add(d)
				}
			}
		})
	}
}

// checkInitials demands that the datagrams lead to the name, and not before
// they have all come that are different.
func checkInitials(t *testing.T, datagrams [][]byte, want string) {
	t.Helper()
	var q Initials
	for i, d := range datagrams {
		name, done, err := add(t, &q, d)
		if err != nil || done && name != want {
			t.Fatalf("datagram %d: %q, %v, %v; want %q", i, name, done, err, want)
		}
	}
	if !q.done {
		t.Errorf("%d datagrams, and no name; want %q", len(datagrams), want)
	}
}

// add is q.Add, which does not write to the datagram and sticks to what it has
// said.
func add(t *testing.T, q *Initials, datagram []byte) (name string, done bool, err error) {
	t.Helper()
	before, was := bytes.Clone(datagram), *q
	name, done, err = q.Add(datagram)
	if !bytes.Equal(before, datagram) {
		t.Error("the datagram was written to")
	}
	if (was.done || was.err != nil) && (name != was.name || done != was.done || !errors.Is(err, was.err)) {
		t.Errorf("%q, %v, %v; before: %q, %v, %v", name, done, err, was.name, was.done, was.err)
	}
	if (done || err != nil) && q.data != nil {
		t.Error("the hello is kept, and needed no more")
	}
	if done && err != nil || !done && name != "" {
		t.Errorf("%q, %v, %v do not go together", name, done, err)
	}
	return name, done, err
}

// shuffled returns the datagrams in some order, and some of them twice.
func shuffled(datagrams [][]byte) [][]byte {
	all := slices.Clone(datagrams)
	for range rand.IntN(len(all)) {
		all = append(all, datagrams[rand.IntN(len(datagrams))])
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// crypto is a CRYPTO frame of a part of a message.
func crypto(message string, from, to int) string {
	b := []byte{0x06}
	b = binary.BigEndian.AppendUint32(b, 0x80000000|uint32(from))
	b = binary.BigEndian.AppendUint32(b, 0x80000000|uint32(to-from))
	return string(b) + message[from:to]
}

// pieces has a frame for every other byte of a message.
func pieces(message string) string {
	var frames strings.Builder
	for i := 0; i < len(message); i += 2 {
		frames.WriteString(crypto(message, i, i+1))
	}
	return frames.String()
}

// sealed is an Initial packet as a client makes its first ones.
func sealed(version uint32, dcid string, number uint32, payload string, change ...func(first *byte)) []byte {
	return sealedWith(newInitialKeys(version, []byte(dcid)), version, dcid, number, "", payload, change...)
}

func withToken(t *testing.T, token, payload string) []byte {
	t.Helper()
	return sealedWith(newInitialKeys(version1, []byte("destination")), version1, "destination", 0, token, payload)
}

func sealedWith(keys initialKeys, version uint32, dcid string, number uint32, token, payload string, change ...func(first *byte)) []byte {
	payload += strings.Repeat("\x00", max(4, 1100-len(payload)))
	first := byte(0xc0)
	if version == version2 {
		first |= 0x10
	}
	size := 4
	if number < 256 {
		size = 1
	}
	first |= byte(size - 1)
	for _, f := range change {
		f(&first)
	}
	b := header(first, version, dcid)
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(token)))
	b = append(b, token...)
	b = binary.BigEndian.AppendUint32(b, 0x80000000|uint32(size+len(payload)+keys.aead.Overhead()))
	pn := len(b)
	b = append(b, binary.BigEndian.AppendUint32(nil, number)[4-size:]...)
	nonce := keys.iv
	for i := range size {
		nonce[len(nonce)-1-i] ^= b[len(b)-1-i]
	}
	b = keys.aead.Seal(b, nonce[:], []byte(payload), b)
	var mask [aes.BlockSize]byte
	keys.header.Encrypt(mask[:], b[pn+4:][:aes.BlockSize])
	b[0] ^= mask[0] & 0x0f
	for i := range size {
		b[pn+i] ^= mask[1+i]
	}
	return b
}

func header(first byte, version uint32, dcid string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{first}, version)
	b = append(append(b, byte(len(dcid))), dcid...)
	return append(b, 0) // no source ID
}

// longHeader is a packet of a kind that has no token.
func longHeader(version uint32, kind byte, dcid, rest string) []byte {
	b := header(0xc0|kind<<4, version, dcid)
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(rest)))
	return append(b, rest...)
}

// longInitial is an Initial packet that nobody has encrypted.
func longInitial(rest string) []byte {
	b := append(header(0xc0, version1, "destination"), 0)
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(rest)))
	return append(b, rest...)
}
