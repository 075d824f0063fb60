package fairness

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

var nodes = []string{"w1", "w2", "w3"}

func spread(way, protocol, client string, counts ...int) Spread {
	s := Spread{Way: way, Protocol: protocol, Clients: map[string]int{client: 1}, Said: "told: " + client}
	for i, name := range nodes {
		s.Nodes = append(s.Nodes, Node{Name: name, Pods: counts[i*(i+1)/2 : (i+1)*(i+2)/2]})
	}
	return s
}

func example() []Spread {
	const own, node = "the client's own address", "a node's address"
	return []Spread{
		spread("each node the same, policy Local", "TCP", own, 2000, 1015, 985, 670, 660, 670),
		spread("each node the same, policy Local", "UDP", own, 1990, 1010, 1000, 680, 660, 660),
		spread("gatehouse, nat, node ports, policy Local", "TCP", own, 1003, 1010, 985, 1020, 990, 992),
		spread("gatehouse, nat, node ports, policy Local", "UDP", own, 1011, 1002, 985, 1020, 990, 992),
		spread("gatehouse, nat, node ports, policy Cluster", "TCP", node, 1013, 1000, 985, 1020, 990, 992),
		spread("gatehouse, nat, node ports, policy Cluster", "UDP", node, 1001, 1012, 985, 1020, 990, 992),
		spread("gatehouse, nat, straight to the pods", "TCP", own, 1003, 1010, 985, 1020, 990, 992),
		spread("gatehouse, nat, straight to the pods", "UDP", own, 1011, 1002, 1500, 520, 975, 992),
		spread("gatehouse, proxy, node ports, policy Local", "TCP", "gatehouse's address", 1000, 1000, 1000, 1000, 1000, 1000),
		spread("gatehouse, proxy, node ports, policy Local", "UDP", "gatehouse's address", 1000, 1000, 1000, 1000, 1000, 1000),
	}
}

func TestTableAndPicture(t *testing.T) {
	t.Parallel()
	for name, got := range map[string]string{"table.md": Table(example()), "picture.svg": Picture(example())} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs (go test -update writes it anew); got:\n%s", path, got)
		}
	}
}

func TestThePictureIsXML(t *testing.T) {
	t.Parallel()
	s := spread(`<w&"`, "TCP", "<b>", 1, 2, 3, 4, 5, 6)
	d := xml.NewDecoder(strings.NewReader(Picture([]Spread{s})))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// 2,000 connections more or less than a sixth are no chance; 2 in 100 are.
func TestEqualSharesAreToldFromOthers(t *testing.T) {
	t.Parallel()
	for want, s := range map[bool]Spread{
		true:  spread("", "", "", 1020, 980, 1030, 985, 975, 1010),
		false: spread("", "", "", 2000, 1000, 1000, 667, 667, 666),
	} {
		if got := s.Fair(); got != want {
			t.Errorf("%v: fair: %t", s.Nodes, got)
		}
	}
	if spread("", "", "", 1000, 1000, 1000, 1000, 1000, 0).Fair() {
		t.Error("a pod that gets nothing has its share")
	}
	if spread("", "", "", 0, 0, 0, 0, 0, 0).Fair() {
		t.Error("nothing is fair")
	}
	// The quantile of five degrees of freedom is 25.7; the approximation is 2 % above it.
	if _, bound := ChiSquare(make([]int, 6)); bound < 25.7 || bound > 26.4 {
		t.Errorf("bound %.2f", bound)
	}
}
