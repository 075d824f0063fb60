package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

func TestLeasesAreWhatTheDaemonSays(t *testing.T) {
	now := time.Now()
	lease := func(addr, mac, name string, left time.Duration) edge.Lease {
		return edge.Lease{Zone: "cluster", Addr: netip.MustParseAddr(addr), MAC: mac, Hostname: name, Begun: now, Expires: now.Add(left + time.Second/2)}
	}
	reserved, aside := lease("10.0.0.11", "02:00:00:00:00:11", "nas", 30*time.Hour), lease("10.0.0.130", "", "", 9*time.Minute+5*time.Second)
	reserved.Reserved, aside.Declined = true, true
	s := status.Status{Router: status.Router{DHCP: []status.DHCPZone{
		{Zone: "cluster", Size: 100, Free: 98, Leases: []edge.Lease{reserved, lease("10.0.0.107", "02:00:00:00:00:07", "laptop", 11*time.Hour+59*time.Minute), aside}},
		{Zone: "home", Leases: []edge.Lease{}, Error: "no interface of the zone has an IPv4 address"},
	}}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(s) }))
	defer server.Close()
	run := func(args ...string) (code int, out, errs string) {
		var o, e strings.Builder
		code = Main(append([]string{"leases", "--url", server.URL}, args...), &o, &e)
		return code, o.String(), e.String()
	}
	const want = `zone cluster: 98 of 100 addresses are free
ADDRESS     MAC                NAME    ENDS IN  KIND
10.0.0.11   02:00:00:00:00:11  nas     1d6h     reserved
10.0.0.107  02:00:00:00:00:07  laptop  11h59m   lease
10.0.0.130  -                  -       9m5s     set aside

zone home: 0 of 0 addresses are free
  no interface of the zone has an IPv4 address
`
	if code, out, errs := run(); code != 0 || out != want {
		t.Errorf("%d, %s\n%s", code, errs, out)
	}
	if code, out, _ := run("home"); code != 0 || strings.Contains(out, "cluster") || !strings.Contains(out, "zone home") {
		t.Errorf("%d\n%s", code, out)
	}
	code, out, _ := run("-o", "json", "cluster", "home")
	var all []edge.Lease
	if err := json.Unmarshal([]byte(out), &all); code != 0 || err != nil || len(all) != 3 || all[0].Hostname != "nas" || !all[2].Declined {
		t.Errorf("%d, %v\n%s", code, err, out)
	}
	if code, _, errs := run("office"); code != 1 || !strings.Contains(errs, `no machine gets addresses in a zone "office": have cluster, home`) {
		t.Errorf("%d, %s", code, errs)
	}
	s.DHCP = nil
	if code, out, _ := run(); code != 0 || out != "No zone's machines get addresses by DHCP.\n" {
		t.Errorf("%d, %s", code, out)
	}
	if code, out, _ := run("-o", "json"); code != 0 || strings.TrimSpace(out) != "[]" {
		t.Errorf("%d, %s", code, out)
	}
	if code, _, _ := run("-o", "yaml"); code != 2 {
		t.Errorf("%d", code)
	}
}
