package prove

import (
	"fmt"
	"strings"
	"testing"
)

// Every mistake is told, with its position and what would be right.
func TestMistakesInExpectations(t *testing.T) {
	zones := []string{"home", "internet", "cluster"}
	for text, want := range map[string]string{
		"":                              "",
		"  # a comment\n\n":             "",
		"hone can reach self:22":        `f:1:1: no zone named "hone"; did you mean "home"? have home, internet, cluster, any`,
		"home":                          `f:1:5: here can or cannot is expected, not the end of the line; ` + form,
		"home may reach self":           `f:1:6: here can or cannot is expected, not "may"; ` + form,
		"home can see self":             `f:1:10: here reach is expected, not "see"; ` + form,
		"home can reach":                `f:1:15: here a target is expected; write one such as 10.0.0.10:6443, self:ssh, a zone, or a Service such as shop/web:80`,
		"home can reach self,":          `f:1:21: here a target is expected; write one such as 10.0.0.10:6443, self:ssh, a zone, or a Service such as shop/web:80`,
		"home can reach self internet":  `f:1:21: here a comma is expected, not "internet"; write targets with commas between them`,
		"home can reach self:0":         `f:1:21: port 0 is out of range; ports are 1 to 65535`,
		"home can reach self:ssl":       `f:1:21: "ssl" is no port; write a number, 53/UDP, 8000-8010/TCP, or a name; did you mean "ssh"? names are dhcp, dns, http, https, ntp, ping, ssh`,
		"home cannot reach only self":   `f:1:19: cannot reach only says nothing of the rest; write can reach only and what may be reached`,
		"home can reach anything":       `f:1:16: "anything" does not fit here; write cannot reach anything, can reach nothing, or targets`,
		"home from eth0 can reach self": `f:1:11: "eth0" is neither an address nor a network; write one such as 10.11.12.7 or 10.11.12.0/24`,
		"home can reach [x]:22":         "",
		"home can reach a:b:22":         `f:1:16: "a:b:22" is no target; write one such as 10.0.0.10:6443, [fd00::1]:22, self:ssh, a zone, or a Service such as shop/web:80`,
		"\xff":                          `f:1:1: it is not UTF-8 text; write it with an editor, as text`,
		"home can reach self # the box": "",
		"home can reach " + strings.Repeat("self, ", 100) + "self": "f:1:616: more targets than one statement can have; write another line for them",
		"x can reach self\nhome can see self":                      "f:1:1: no zone named \"x\"; have home, internet, cluster, any\nf:2:10: here reach is expected, not \"see\"; " + form,
	} {
		_, problems := Parse("f", []byte(text), zones)
		var lines []string
		for _, p := range problems {
			lines = append(lines, p.String())
		}
		if got := strings.Join(lines, "\n"); got != want && (want == "" || !strings.HasPrefix(got, want)) {
			t.Errorf("%q: got\n%s\nwant\n%s", text, got, want)
		}
	}
}

func TestTargets(t *testing.T) {
	zones := []string{"home", "internet"}
	for text, want := range map[string]string{
		"10.0.0.10:6443":      "10.0.0.10/32 [6443/TCP]",
		"10.0.0.0/24":         "10.0.0.0/24 []",
		"10.0.0.0/24:80-90":   "10.0.0.0/24 [80-90/TCP]",
		"fd00::10":            "fd00::10/128 []",
		"[fd00::10]:53/UDP":   "fd00::10/128 [53/UDP]",
		"[fd00::/64]:ssh":     "fd00::/64 [22/TCP]",
		"self":                "self []",
		"self:dns":            "self [53/UDP 53/TCP]",
		"internet:https":      "zone internet [443/TCP]",
		"shop/web":            "name shop/web []",
		"shop/web:53/UDP":     "name shop/web [53/UDP]",
		"git-ssh:22":          "name git-ssh [22/TCP]",
		"::ffff:10.0.0.10":    "10.0.0.10/32 []",
		"203.0.113.10:ping":   "203.0.113.10/32 [ping]",
		"internet-facing/web": "name internet-facing/web []",
	} {
		st, problems := Parse("f", []byte("home can reach "+text), zones)
		if len(problems) > 0 {
			t.Errorf("%s: %v", text, problems)
			continue
		}
		x := st[0].Targets[0]
		got := "name " + x.Name
		switch {
		case x.Self:
			got = "self"
		case x.Zone != "":
			got = "zone " + x.Zone
		case x.Network.IsValid():
			got = x.Network.String()
		}
		if got += " " + fmt.Sprint(x.Services); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// FuzzParse: whatever a file of expectations has, each of its lines is a
// statement, says nothing, or has a problem with a position; and a statement can
// be checked.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"home can reach 10.0.0.10:6443, shop/web:80\ninternet cannot reach self\n", "any can reach only public/web:443 # c",
		"home from fd00::/64 can reach [fd00::1]:22/UDP", "internet can reach nothing", "internet cannot reach 10.0.0.0/8:1-65535/SCTP",
	} {
		f.Add(text)
	}
	s := siteOf(f)
	f.Fuzz(func(t *testing.T, text string) {
		statements, problems := Parse("f", []byte(text), []string{"home", "internet", "cluster"})
		at := map[int]bool{}
		for _, p := range problems {
			if p.Pos.Line < 1 || p.Pos.Col < 1 || p.What == "" || p.Remedy == "" {
				t.Errorf("%q: %+v", text, p)
			}
			at[p.Pos.Line] = true
		}
		for _, st := range statements {
			if at[st.Pos.Line] {
				t.Errorf("%q: line %d is good and bad", text, st.Pos.Line)
			}
			at[st.Pos.Line] = true
		}
		line := 0
		for l := range strings.Lines(text) {
			line++
			if first := strings.TrimLeft(l, " \t\r\n"); first != "" && first[0] != '#' && !at[line] {
				t.Errorf("%q: line %d is nothing", text, line)
			}
		}
		for _, b := range s.Check(statements) {
			if b.Because == "" {
				t.Errorf("%q: %+v", text, b)
			}
		}
	})
}
