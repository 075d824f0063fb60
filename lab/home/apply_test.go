package home

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Somebody at home works on the box over a connection to its port 22, and applies a firewall that has no policy for
// him. He is not cut off at once, gets no new connection, and does not confirm: then he gets one, and the file is as
// it was. What he confirms is in the file; what nobody has confirmed when gatehouse is killed is gone.
func TestOperatorIsLetInAgain(t *testing.T) {
	const at = "10.11.12.32:22"
	if err := lab.Run(t.Context(), "sshd", "edge", []string{"LAB_POD=sshd"}, labProgram(), "_pod", "echo", "--port", "22"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Stop(context.Background(), "sshd"); err != nil {
			t.Error(err)
		}
	})
	before, err := os.ReadFile(lab.EdgeConfig())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	with := func(name, old, replaced string) string {
		text := strings.Replace(string(before), old, replaced, 1)
		if text == string(before) {
			t.Fatalf("the example has no %q", old)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	cut := with("cut.yaml", "ports: [ssh, ping]", "ports: [ping]")
	wider := with("wider.yaml", "ports: [ssh, ping]", "ports: [ssh, ping, 2222]")
	command := func(args ...string) (string, error) {
		return lab.Exec(t.Context(), "edge", append([]string{gatehouse}, append(args, "-c", lab.EdgeConfig())...)...)
	}
	admits := func(when string) {
		t.Helper()
		eventually(t, 60*time.Second, when+" home gets a new connection", func() error {
			if got, err := passes("home1", at); err != nil || !got {
				return errors.Join(err, errors.New("it does not"))
			}
			return nil
		})
	}
	unchanged := func(when string) {
		t.Helper()
		if after, err := os.ReadFile(lab.EdgeConfig()); err != nil || string(after) != string(before) {
			t.Errorf("%s the file is another one (%v):\n%s", when, err, after)
		}
	}
	admits("before")
	conn, err := lab.Dialer("home1")(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	works := func() error {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := fmt.Fprintln(conn, "still here"); err != nil {
			return err
		}
		for {
			line, err := answers.ReadString('\n')
			if err != nil || strings.Contains(line, "still here") {
				return err
			}
		}
	}
	if err := works(); err != nil {
		t.Fatal(err)
	}

	if out, err := command("apply", "--confirm", "15s", cut); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := passes("home1", at); err != nil || got {
		t.Errorf("without the policy home gets a new connection: %v, %v", got, err)
	}
	if err := works(); err != nil {
		t.Errorf("the connection that was there: %v", err)
	}
	admits("without a word")
	unchanged("without a word")

	if out, err := command("apply", "--confirm", "1h", cut); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(lab.Kill(t.Context(), "gatehouse"), lab.Start(t.Context(), "gatehouse")); err != nil {
		t.Fatal(err)
	}
	admits("after it was killed")
	unchanged("after it was killed")

	t.Cleanup(func() {
		if err := os.WriteFile(lab.EdgeConfig(), before, 0o600); err != nil {
			t.Error(err)
		}
	})
	if out, err := command("apply", "--confirm", "1h", wider); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := command("confirm"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wanted, _ := os.ReadFile(wider)
	if got, err := os.ReadFile(lab.EdgeConfig()); err != nil || string(got) != string(wanted) {
		t.Errorf("confirmed, the file has not what was on trial (%v)", err)
	}
	admits("confirmed,")
}

func labProgram() string {
	bin := os.Getenv("LAB_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	return filepath.Join(bin, "lab")
}
