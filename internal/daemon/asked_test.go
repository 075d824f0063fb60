package daemon

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/explain"
)

// A client that is banned does not get through, and is told why.
func TestBansAreExplained(t *testing.T) {
	front := freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, strings.Replace(configFor(freeAddr(t), front, echo(t, "one")), "{name: f0,", "{name: limited, maxRatePerClient: 1/1h, banTime: 1h,", 1))
	d := start(t, file)
	eventually(t, "banned", func() error {
		conn, err := net.Dial("tcp", front)
		if err != nil {
			return err
		}
		conn.Close()
		if s := d.Status(); len(s.Frontends) == 0 || s.Frontends[0].Bans == 0 {
			return errors.New("still served")
		}
		return nil
	})
	for _, to := range []string{"limited", front} {
		answer, err := d.Explain(explain.Question{From: "127.0.0.1", To: to})
		if err != nil || answer.Verdict != explain.NotReachable || !strings.Contains(answer.Ways[0].Summary, "127.0.0.1 is banned until ") {
			t.Errorf("%s: %+v %v", to, answer, err)
		}
	}
}
