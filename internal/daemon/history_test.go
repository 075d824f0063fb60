package daemon

import (
	"errors"
	"fmt"
	"testing"

	"e13.dev/gatehouse/internal/status"
)

// counted is what history takes from a row, by what tells it from others.
func counted(rows []status.Frontend) map[string]string {
	all := map[string]string{}
	for _, f := range rows {
		key := fmt.Sprint(f.Protocol, f.Zone, f.Listen, f.Name, f.DataPlane, f.Draining)
		text := fmt.Sprint(f.Accepted, f.Received, f.Sent)
		for _, b := range f.Backends {
			if !f.Draining {
				text += fmt.Sprintf(", %s %.2f %d %d %d", b.Addr, b.Share, b.Total, b.Received, b.Sent)
			}
		}
		all[key] = text
	}
	return all
}

// What is remembered is what is told, though it is found with less work.
func TestHistoryCountsWhatStatusTells(t *testing.T) {
	file, front, gone := t.TempDir()+"/gatehouse.yaml", freeAddr(t), freeAddr(t)
	backend := echo(t, "one")
	write(t, file, configFor(freeAddr(t), front, backend, gone, backend))
	d := start(t, file)
	eventually(t, "both are open", func() error {
		conn, _, err := dial(front)
		if err == nil {
			conn.Close()
		}
		return err
	})
	stays, _, err := dial(gone)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	same := func(rows int) func() error {
		return func() error {
			got, want := counted(d.counts()), counted(d.Status().Frontends)
			if len(want) != rows || fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("it counts\n%v, and status says\n%v", got, want)
			}
			return nil
		}
	}
	eventually(t, "they are the same", same(2))
	eventually(t, "rates are told", func() error {
		for _, f := range d.Status().Frontends {
			if f.Rates != nil && f.Rates.Connections > 0 && f.Backends[0].Got != nil && f.Backends[0].Got.Share == 1 {
				return nil
			}
		}
		conn, _, err := dial(front)
		if err == nil {
			conn.Close()
		}
		return errors.Join(errors.New("not yet"), err)
	})
	write(t, file, configFor(freeAddr(t), front, backend))
	eventually(t, "the one that drains, too", func() error {
		if rows := d.Status().Frontends; len(rows) != 2 || !rows[1].Draining {
			return fmt.Errorf("%d rows", len(rows))
		}
		return same(2)()
	})
}
