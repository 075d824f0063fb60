package ra

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWhatWasToldIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if told, err := Load(dir); told != nil || err != nil {
		t.Errorf("Load of nothing = %v, %v", told, err)
	}
	now := time.Now()
	short, long := netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("2001:db8::/64")
	over := netip.MustParsePrefix("fd01::/64")
	if err := Save(dir, Told{"eth0": {short: now.Add(time.Hour), long: now.Add(24 * time.Hour), over: now.Add(-time.Second)}, "eth1": {over: now}}); err != nil {
		t.Fatal(err)
	}
	told, err := Load(dir)
	if err != nil || len(told) != 1 || len(told["eth0"]) != 2 {
		t.Fatalf("Load = %v, %v", told, err)
	}
	if left := told["eth0"][short].Sub(now); left != time.Hour {
		t.Errorf("%s are left of an hour", left)
	}
	if left := told["eth0"][long].Sub(now); left > twoHours+time.Minute || left < twoHours-time.Second {
		t.Errorf("%s are left of a day", left)
	}
	if info, err := os.Stat(filepath.Join(dir, fileName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	a := New(nil, Options{})
	a.Recall(told)
	if got := a.Told(); !maps.Equal(got["eth0"], told["eth0"]) {
		t.Errorf("recalled is %v", got)
	}
}

func TestAFileThatCannotBe(t *testing.T) {
	for text, want := range map[string]string{
		"":  "unexpected end of JSON input",
		"7": "cannot unmarshal number",
		`{"eth0": {"fe80::/64": "2030-01-01T00:00:00Z"}}`: "fe80::/64 is not a prefix that machines have addresses in",
		`{"eth0": {"fd00::/48": "2030-01-01T00:00:00Z"}}`: "fd00::/48 is not a prefix that machines have addresses in",
		strings.Repeat(" ", maxSize+1):                    "it is too large",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if told, err := Load(dir); told != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load of %.60q = %v, %v; want %q", text, told, err, want)
		}
	}
}

// Whatever a file says, nothing is told for longer than two hours because of it.
func FuzzDecodeTold(f *testing.F) {
	f.Add([]byte(`{"eth0": {"fd00::/64": "2030-01-01T00:00:00Z", "fd01::/64": "2026-01-01T00:00:01Z"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		told, err := decodeTold(data, now)
		if err != nil {
			return
		}
		for device, prefixes := range told {
			if len(prefixes) == 0 || len(prefixes) > maxPrefixes {
				t.Errorf("%s has %d prefixes", device, len(prefixes))
			}
			for p, until := range prefixes {
				if !CanHave(p) || !until.After(now) || until.After(now.Add(twoHours)) {
					t.Errorf("%s is told until %s", p, until)
				}
			}
		}
	})
}
