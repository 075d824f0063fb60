package cli

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

// box is an edge whose firewall lets somebody at home administer it, and a
// gatehouse that runs there.
type box struct {
	t          *testing.T
	site       netnstest.Site
	dir, file  string
	cut, wider string // configurations: one that keeps him out, and one that lets in more
	gatehouse  *exec.Cmd
	log        *os.File
}

const boxFile = `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}, cluster: {interfaces: [eth0]}}
admin: {socket: %s/api.sock}
firewall:
  policies:
    - {from: home, to: self, ports: [%s]}
`

func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{t: t, site: netnstest.NewSite(t), dir: t.TempDir()}
	netnstest.Mirror(t, nil, 22)
	netnstest.Mirror(t, nil, 8443)
	write := func(name, ports string) string {
		file := filepath.Join(b.dir, name)
		if err := os.WriteFile(file, fmt.Appendf(nil, boxFile, b.dir, ports), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	b.file, b.cut, b.wider = write("gatehouse.yaml", "ssh"), write("cut.yaml", "8080"), write("wider.yaml", "ssh, 8443")
	var err error
	if b.log, err = os.Create(filepath.Join(b.dir, "log")); err != nil {
		t.Fatal(err)
	}
	b.start()
	t.Cleanup(func() {
		_ = b.gatehouse.Process.Kill()
		_ = b.gatehouse.Wait()
		if t.Failed() {
			t.Logf("the log of gatehouse:\n%s", b.said())
		}
		b.log.Close()
	})
	return b
}

func (b *box) said() []byte {
	data, _ := os.ReadFile(b.log.Name())
	return data
}

func (b *box) start() {
	b.t.Helper()
	b.gatehouse = exec.CommandContext(b.t.Context(), "gatehouse", "run", "-c", b.file)
	b.gatehouse.Stderr = b.log // a file: a successor has it, too
	if err := b.gatehouse.Start(); err != nil {
		b.t.Fatal(err)
	}
	netnstest.Eventually(b.t, 30*time.Second, "gatehouse runs", func() bool {
		return strings.HasPrefix(called("status", "--url", "unix:"+filepath.Join(b.dir, "api.sock")), "gatehouse      ready")
	})
	b.admits(":22")
}

// admits waits until somebody at home gets a new connection.
func (b *box) admits(port string) {
	b.t.Helper()
	netnstest.Eventually(b.t, 30*time.Second, "home reaches "+port, func() bool {
		seen, err := netnstest.LookIn(b.t, b.site.Home, "tcp", "10.11.12.32"+port)
		return err == nil && seen == "10.11.12.7"
	})
}

func (b *box) keepsOut(port string) {
	b.t.Helper()
	if seen, err := netnstest.LookIn(b.t, b.site.Home, "tcp", "10.11.12.32"+port); err == nil {
		b.t.Errorf("home still reaches %s: %s", port, seen)
	}
}

// calls runs a command of gatehouse, and wants it to go well.
func (b *box) calls(args ...string) string {
	b.t.Helper()
	got := called(append(args, "--url", "unix:"+filepath.Join(b.dir, "api.sock"))...)
	if !strings.HasSuffix(got, "exit code 0") {
		b.t.Fatalf("%v: %s", args, got)
	}
	return got
}

func (b *box) has(want string) {
	b.t.Helper()
	got, err := os.ReadFile(b.file)
	if err != nil {
		b.t.Fatal(err)
	}
	wanted, err := os.ReadFile(want)
	if err != nil {
		b.t.Fatal(err)
	}
	if !bytes.Equal(got, wanted) {
		b.t.Errorf("the file is not as %s:\n%s", want, got)
	}
}

// session is a connection that somebody works over.
type session struct {
	net.Conn
	answers *bufio.Reader
}

func (b *box) login() session {
	b.t.Helper()
	var s session
	b.site.Home.Do(b.t, func() {
		conn, err := net.Dial("tcp", "10.11.12.32:22")
		if err != nil {
			b.t.Fatal(err)
		}
		s = session{conn, bufio.NewReader(conn)}
	})
	b.t.Cleanup(func() { s.Close() })
	if _, err := s.answers.ReadString('\n'); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (s session) types(line string) error {
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(s, line); err != nil {
		return err
	}
	got, err := s.answers.ReadString('\n')
	if err == nil && got != line+"\n" {
		err = fmt.Errorf("it answers %q to %q", got, line)
	}
	return err
}

// Somebody who is at work over the network applies a firewall that keeps him out.
// His connection goes on, a new one he does not get; he does not confirm, and gets
// one again, though nobody has done anything.
func TestNetnsOperatorIsLetInAgain(t *testing.T) {
	netnstest.Run(t, func() {
		b := newBox(t)
		work := b.login()
		before, err := os.ReadFile(b.file)
		if err != nil {
			t.Fatal(err)
		}
		if said := b.calls("apply", "--confirm", "12s", b.cut); !strings.Contains(said, "on trial until") {
			t.Errorf("apply says %s", said)
		}
		b.keepsOut(":22")
		if err := work.types("still here"); err != nil {
			t.Errorf("the connection that was there: %v", err)
		}
		b.admits(":22")
		if after, _ := os.ReadFile(b.file); !bytes.Equal(before, after) {
			t.Errorf("the file was changed:\n%s", after)
		}
		if got := called("confirm", "--url", "unix:"+filepath.Join(b.dir, "api.sock")); !strings.Contains(got, "the last one was not confirmed in time") {
			t.Errorf("a word that comes late: %s", got)
		}

		// What he confirms stays.
		b.calls("apply", "--confirm", "10m", b.wider)
		b.admits(":8443")
		b.calls("confirm")
		b.has(b.wider)
		b.admits(":8443")
	})
}

// Whatever ends the process ends the trial: what starts next reads the files.
func TestNetnsTrialEndsWithTheProcess(t *testing.T) {
	netnstest.Run(t, func() {
		b := newBox(t)
		before, err := os.ReadFile(b.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			end  func()
		}{
			{"killed", func() {
				if err := b.gatehouse.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = b.gatehouse.Wait()
				b.keepsOut(":22") // the rules are the kernel's: a firewall does not open when it dies
				b.start()
			}},
			{"stopped", func() {
				if err := b.gatehouse.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				_ = b.gatehouse.Wait()
				b.start()
			}},
			{"upgraded", func() {
				if err := b.gatehouse.Process.Signal(syscall.SIGUSR2); err != nil {
					t.Fatal(err)
				}
				_ = b.gatehouse.Wait() // it has nothing to drain
				m := regexp.MustCompile(`"msg":"upgrade done.*"pid":([0-9]+)`).FindSubmatch(b.said())
				if m == nil {
					t.Fatal("no upgrade")
				}
				pid, _ := strconv.Atoi(string(m[1]))
				t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
			}},
		} {
			b.calls("apply", "--confirm", "1h", b.cut)
			b.keepsOut(":22")
			c.end()
			b.admits(":22")
			if after, _ := os.ReadFile(b.file); !bytes.Equal(before, after) {
				t.Errorf("%s: the file was changed:\n%s", c.name, after)
			}
			netnstest.Eventually(t, 30*time.Second, c.name+": there is no trial", func() bool {
				return strings.Contains(called("confirm", "--url", "unix:"+filepath.Join(b.dir, "api.sock")), "no configuration is on trial")
			})
		}
	})
}
