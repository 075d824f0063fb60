package daemon

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/netnstest"
)

// Two gatehouses would take each other's tables away: who comes second says so
// until the other is gone.
func TestNetnsASecondGatehouseIsAProblem(t *testing.T) {
	const inside = "GATEHOUSE_TEST_OTHER"
	if os.Getenv(inside) != "" {
		present, err := host.CheckIn()
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("\nready\n")
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		if line != "" {
			if err := present.Leave(); err != nil {
				t.Fatal(err)
			}
			os.Stdout.WriteString("\nleft\n")
			_, _ = io.Copy(io.Discard, os.Stdin)
		}
		return
	}
	netnstest.Run(t, func() {
		t.Setenv(inside, "1")
		other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		in, err := other.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := other.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		await := func(word string) {
			t.Helper()
			for lines.Scan() {
				if lines.Text() == word {
					return
				}
			}
			t.Fatalf("the other has not said %q", word)
		}
		await("ready")
		now := time.Now()
		var o others
		if p := o.problem(now, now, false); len(p) > 0 {
			t.Errorf("with nothing shared: %v", p)
		}
		if p := o.problem(now, now.Add(time.Second), true); len(p) > 0 {
			t.Errorf("just after an upgrade: %v", p)
		}
		p := o.problem(now, now, true)
		if want := fmt.Sprintf("process %d", other.Process.Pid); len(p) != 1 || !strings.Contains(p[0].What, want) {
			t.Fatalf("got %v, want a problem with %s", p, want)
		}
		fmt.Fprintln(in, "leave")
		await("left")
		if p := o.problem(now, now, true); len(p) > 0 {
			t.Errorf("it leaves: %v", p)
		}
		in.Close()
		if err := other.Wait(); err != nil {
			t.Error(err)
		}
	})
}
