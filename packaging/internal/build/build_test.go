package build

import (
	"os/exec"
	"testing"
	"time"
)

// Versions as git describes them, oldest first, are in that order for dpkg too.
func TestVersionsAreInOrder(t *testing.T) {
	before := ""
	for _, tt := range []struct{ version, want string }{
		{"0123abc", "0.0.0~20261123.101112.0123abc"},
		{"0123abc-dirty", "0.0.0~20261123.101112.0123abc+dirty"},
		{"v0.9.0-rc.1", "0.9.0~rc.1"},
		{"v0.9.0", "0.9.0"},
		{"v0.9.0-4-g0123abc", "0.9.0+4.g0123abc"},
		{"v0.9.0-14-g0123abc-dirty", "0.9.0+14.g0123abc+dirty"},
		{"1.0.0", "1.0.0"},
		{"v1.10.0", "1.10.0"},
	} {
		r := Release{Version: tt.version, Time: time.Date(2026, 11, 23, 10, 11, 12, 0, time.UTC)}
		got, err := r.Debian()
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.version, got, err, tt.want)
		}
		if dpkg, err := exec.LookPath("dpkg"); err == nil && before != "" {
			if err := exec.Command(dpkg, "--compare-versions", before, "lt", got).Run(); err != nil {
				t.Errorf("dpkg takes %s for no older than %s", before, got)
			}
		}
		before = got
	}
	if got, err := (Release{Version: "my branch"}).Debian(); err == nil {
		t.Errorf("my branch: %s", got)
	}
}
