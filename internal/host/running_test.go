package host

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/netnstest"
)

func TestNetnsRunning(t *testing.T) {
	const inside = "GATEHOUSE_TEST_CHECK_IN"
	if os.Getenv(inside) != "" {
		if _, err := CheckIn(); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("\nready\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	netnstest.Run(t, func() {
		are := func(when string, want ...int) {
			t.Helper()
			slices.Sort(want)
			if got, err := Running(); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: Running = %v, %v; want %v", when, got, err, want)
			}
		}
		// A thread has been elsewhere: what is asked is the namespace of the caller's.
		elsewhere := netnstest.New(t)
		are("at first")
		first, err := CheckIn()
		if err != nil {
			t.Fatal(err)
		}
		are("one", os.Getpid())
		second, err := CheckIn() // as of a process with the same number in another container
		if err != nil {
			t.Fatal(err)
		}
		first.Close()
		are("one of two", os.Getpid())
		if got, err := Deciding(); err != nil || !slices.Equal(got, []int{os.Getpid()}) {
			t.Errorf("Deciding = %v, %v; want this one", got, err)
		}
		if err := second.Leave(); err != nil {
			t.Fatal(err)
		}
		are("one that leaves", os.Getpid())
		if got, err := Deciding(); err != nil || len(got) > 0 {
			t.Errorf("one that leaves: Deciding = %v, %v; want nobody", got, err)
		}

		t.Setenv(inside, "1")
		next := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		in, err := next.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := next.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
		}
		are("the next one beside it", os.Getpid(), next.Process.Pid)
		// Anybody can say that another is one.
		liar, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(liar, &unix.SockaddrUnix{Name: fmt.Sprintf("@gatehouse/%d/0", os.Getppid())}); err != nil {
			t.Fatal(err)
		}
		are("somebody", 0, os.Getpid(), next.Process.Pid)
		unix.Close(liar)
		second.Close()
		are("the next one alone", next.Process.Pid)
		elsewhere.Do(t, func() { are("in another namespace") })
		if err := next.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = next.Wait()
		are("killed")
	})
}
