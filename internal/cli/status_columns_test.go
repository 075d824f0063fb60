package cli

import (
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

const (
	red   = "\x1b[31m"
	green = "\x1b[32m"
	end   = "\x1b[0m"
)

func TestLinesAreCutWhereTheTerminalEnds(t *testing.T) {
	for line, want := range map[string]string{
		"":                                     "",
		"12345":                                "12345",
		"123456":                               "12345",
		red + "12" + end + "3456":              red + "12" + end + "345",
		red + "123456" + end:                   red + "12345" + end,
		"12" + red + "3456":                    "12" + red + "345" + end,
		"123" + red + "45" + end + "6":         "123" + red + "45" + end,
		"äöüßé!":                               "äöüßé",
		"日本語":                                  "日本", // two cells each, and half a letter is none
		"e\u0301e\u0301e\u0301e\u0301e\u0301!": "e\u0301e\u0301e\u0301e\u0301e\u0301",
		"██··|··":                              "██··|",
		"1234\xff\xff":                         "1234\uFFFD",
	} {
		if got := cut(line, 5); got != want {
			t.Errorf("cut(%q) = %q, want %q", line, got, want)
		}
	}
	if got := cut(red+"x"+end, 0); strings.Contains(got, "x") {
		t.Errorf("in no room there is %q", got)
	}
}

func TestColumnsStandUnderEachOther(t *testing.T) {
	var c columns
	c.add("NAME", "STATE", "NOW")
	c.across("a text that is longer than all of them")
	c.add("日本", red+"down"+end, "1")
	c.add("web", "up", green+"12345"+end)
	want := []string{
		"NAME  STATE    NOW",
		"a text that is longer than all of them",
		"日本  " + red + "down" + end + "       1",
		"web   up     " + green + "12345" + end,
	}
	if got := c.lines(); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWhatOthersSayDoesNothingToATerminal(t *testing.T) {
	for said, want := range map[string]string{
		"a\nb":                          "a\nb",
		red + "down" + end:              red + "down" + end,
		"\x1b[2J\x1b]0;title\a":         "\uFFFD[2J\uFFFD]0;title\uFFFD",
		"a\rb\tc\x7f\u009b31m\u202etxt": "a\uFFFDb\uFFFDc\uFFFD\uFFFD31m\uFFFDtxt",
		"äö日":                           "äö日",
	} {
		if got := harmless(said); got != want {
			t.Errorf("harmless(%q) = %q, want %q", said, got, want)
		}
	}
}

func TestBarsShowWhatWasGotAndWhatWasWanted(t *testing.T) {
	for _, c := range []struct {
		got, wanted float64
		want        string
	}{
		{0, 0, "··········"},
		{0, 0.5, "····|·····"},
		{0.3, 0.3, "██▌·······"},
		{0.6, 0.3, "██▌███····"},
		{0.1, 0.3, "█·|·······"},
		{1, 1, "█████████▌"},
		{1.2, 1.2, "█████████▌"},
	} {
		if got := bar(c.got, c.wanted); got != c.want {
			t.Errorf("bar(%v, %v) = %s, want %s", c.got, c.wanted, got, c.want)
		}
	}
}

// Chance is not called unfair, nor what follows the clients.
func TestUnfairIsWhatChanceDoesNotDo(t *testing.T) {
	got := func(n uint64, all float64, wanted float64) status.Backend {
		return status.Backend{Got: &status.Got{Connections: n, Share: float64(n) / all, Wanted: wanted}}
	}
	for name, c := range map[string]struct {
		balance edge.Balance
		rows    []status.Backend
		want    bool
	}{
		"even":               {"", []status.Backend{got(500, 1000, 0.5), got(500, 1000, 0.5)}, false},
		"chance of few":      {"", []status.Backend{got(8, 10, 0.5), got(2, 10, 0.5)}, false},
		"not chance":         {"", []status.Backend{got(600, 1000, 0.5), got(400, 1000, 0.5)}, true},
		"nothing":            {"", []status.Backend{got(0, 1000, 0.5), got(1000, 1000, 0.5)}, true},
		"a hair, of many":    {"", []status.Backend{got(51e6, 1e8, 0.5), got(49e6, 1e8, 0.5)}, false},
		"weights":            {"", []status.Backend{got(900, 1000, 0.9), got(100, 1000, 0.1)}, false},
		"by the client":      {edge.BalanceSource, []status.Backend{got(1000, 1000, 0.5), got(0, 1000, 0.5)}, false},
		"by how busy it is":  {edge.BalanceLeastConnections, []status.Backend{got(900, 1000, 0.5), got(100, 1000, 0.5)}, false},
		"random, as written": {edge.BalanceRandom, []status.Backend{got(900, 1000, 0.5), got(100, 1000, 0.5)}, true},
	} {
		f := status.Frontend{Balance: c.balance, Backends: c.rows}
		if unfair := isUnfair(f.Balance, c.rows[0].Got, allGot(f)); unfair != c.want {
			t.Errorf("%s: %v", name, unfair)
		}
	}
}

func TestKeysAreWhatTerminalsSend(t *testing.T) {
	for _, c := range []struct {
		read string
		keys []key
		rest string
	}{
		{"jk", []key{keyDown, keyUp}, ""},
		{"\x1b[A\x1b[B\x1bOA\x1bOB", []key{keyUp, keyDown, keyUp, keyDown}, ""},
		{"\x1b[5~\x1b[6~ b", []key{keyPageUp, keyPageDown, keyPageDown, keyPageUp}, ""},
		{"gG\x1b[H\x1b[F", []key{keyHome, keyEnd, keyHome, keyEnd}, ""},
		{"xyz?", nil, ""},
		{"\x1b[1;5Aj\x1bOqk\x1b[<0;1;2Mj", []key{keyDown, keyUp, keyDown}, ""},
		{"j\x1b[", []key{keyDown}, "\x1b["},
		{"\x1b", nil, "\x1b"},
		{"\x1bj", []key{keyDown}, ""},
		{"jq", []key{keyDown, keyQuit}, ""},
		{"\x03", []key{keyQuit}, ""},
	} {
		keys, rest := keysIn(c.read)
		if !slices.Equal(keys, c.keys) || rest != c.rest {
			t.Errorf("keysIn(%q) = %v, %q; want %v, %q", c.read, keys, rest, c.keys, c.rest)
		}
	}
}

// seen is what a frame has put on a screen.
func seen(frame string) []string {
	frame = strings.ReplaceAll(strings.TrimPrefix(frame, "\x1b[H"), "\x1b[K", "")
	return strings.Split(inked.ReplaceAllString(frame, ""), "\r\n")
}

func TestTheViewFitsTheScreen(t *testing.T) {
	now := time.Now()
	v := view{at: now}
	v.take("one\ntwo\nthree\nfour and something\nfive\n")
	look := func(width, height int, want ...string) {
		t.Helper()
		if got := seen(v.frame(width, height, now)); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	const keys = "q quit  j/k line  space/b page  g/G ends"
	look(60, 7, "one", "two", "three", "four and something", "five", "", keys)
	v.scroll(keyDown) // all is there
	look(60, 7, "one", "two", "three", "four and something", "five", "", keys)
	look(60, 4, "one", "two", "three", keys+"  lines 1-3 of 5")
	v.scroll(keyDown)
	look(6, 4, "two", "three", "four a", "q quit")
	v.scroll(keyPageDown)
	look(60, 4, "three", "four and something", "five", keys+"  lines 3-5 of 5")
	v.scroll(keyUp)
	v.scroll(keyEnd)
	look(60, 4, "three", "four and something", "five", keys+"  lines 3-5 of 5")
	v.scroll(keyPageUp)
	v.scroll(keyHome)
	look(60, 3, "one", "two", keys+"  lines 1-2 of 5")
	v.scroll(keyEnd)
	v.take("one\ntwo\n") // there is less now
	look(60, 4, "one", "two", "", keys)
	look(60, 1, keys+"  lines 1-0 of 2")
	v.err = said("nothing \x1b[2Jlistens")
	now = now.Add(12 * time.Second)
	look(80, 4, "no answer for 12s, this is from before: nothing \uFFFD[2Jlistens", "one", "two", keys)
	look(80, 2, "no answer for 12s, this is from before: nothing \uFFFD[2Jlistens", keys+"  lines 1-0 of 2")
}

// What would be right is at the end of a problem, where a screen may end before.
func TestTheViewFoldsProblemsAndNotTheTable(t *testing.T) {
	v := view{}
	v.take("Problems:\n  a.yaml:4:1: there is no such zone; write one of these\n" + string(bad) + "cluster  not reached since noon\x1b[0m\nFRONTEND  STATE  WANTED  GOT\n  home/web:80  open\n    10.0.0.101:31196 w1  up\n")
	want := []string{"Problems:", "  a.yaml:4:1: there", "    is no such zone;", "    write one of", "    these", "cluster  not reached", "  since noon", "FRONTEND  STATE  WANT", "  home/web:80  open", "    10.0.0.101:31196 ", "", "q quit  j/k line  spa"}
	frame := v.frame(21, len(want), time.Now())
	if got := seen(frame); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if coloured := string(bad) + "cluster  not reached\x1b[0m\x1b[K\r\n  " + string(bad) + "since noon\x1b[0m"; !strings.Contains(frame, coloured) {
		t.Errorf("%q has no %q", frame, coloured)
	}
	if got := seen(v.frame(200, 8, time.Now())); got[1] != "  a.yaml:4:1: there is no such zone; write one of these" {
		t.Errorf("%q on a wider screen", got[1])
	}
	for _, line := range []string{strings.Repeat("ä", 70), "  " + strings.Repeat("本", 50), strings.Repeat(" ", 90) + "x", ""} {
		for _, part := range fold(line, 21) {
			if cellsOf(part) > 21 {
				t.Errorf("%q of %q does not fit", part, line)
			}
		}
	}
}

type said string // an error

func (e said) Error() string { return string(e) }

// Who is turned away is named, as far as there is room.
func TestStatusNamesWhoIsBanned(t *testing.T) {
	now := time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)
	ban := func(client string) status.Ban { return status.Ban{Client: client, Until: now.Add(90 * time.Second)} }
	few := []status.Ban{ban("192.0.2.7"), ban("2001:db8::/64")}
	for want, f := range map[string]status.Frontend{
		"banned: 192.0.2.7 for 1m30s more, 2001:db8::/64 for 1m30s more\n":                                {Bans: 2, Banned: few},
		"banned: 192.0.2.7 for 1m30s more, 2001:db8::/64 for 1m30s more, a for 1m30s more, 4997 others\n": {Bans: 5000, Banned: append(few[:2:2], ban("a"), ban("b"))},
		"7 clients are banned\n": {Bans: 7},
	} {
		f.Name = "web"
		var text strings.Builder
		if err := printStatus(&text, status.Status{Frontends: []status.Frontend{f}}, now, false); err != nil || !strings.Contains(text.String(), want) {
			t.Errorf("%v, no %q in\n%s", err, want, text.String())
		}
	}
}
