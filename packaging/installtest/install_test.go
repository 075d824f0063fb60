package installtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/packaging/internal/build"
	"e13.dev/gatehouse/packaging/internal/contents"
)

const config = `apiVersion: gatehouse.e13.dev/v1
zones:
  home:    {interfaces: [home0]}
  cluster: {interfaces: [cluster0]}
frontends:
  - {name: relayed, zones: [home], port: 80, backends: [{address: "10.9.2.2:8080"}]}
  - {name: relayed-udp, zones: [home], port: 80, protocol: UDP, backends: [{address: "10.9.2.2:8080"}]}
%s
stateDir: /var/lib/gatehouse
admin: {listen: "127.0.0.1:9180", socket: /run/gatehouse/api.sock}
`

// What takes CAP_NET_ADMIN.
const administered = `  - {name: moved, zones: [home], port: 81, dataPlane: nat, backends: [{address: "10.9.2.2:8080"}]}
  - {name: shown, zones: [home], port: 82, transparent: true, backends: [{address: "10.9.2.2:8080"}]}
pools:
  - {name: home, zone: home, addresses: [` + pooledAddress + `]}
kubernetes: {kubeconfig: /etc/gatehouse/kubeconfig}
`

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:6443"}}]
users: [{name: u, user: {token: a-token-that-is-secret}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

// deb makes the package of a version, for this machine's architecture.
func deb(t *testing.T, version string) string {
	t.Helper()
	t.Setenv("VERSION", version)
	release, err := build.Of(context.Background(), source(t))
	if err != nil {
		t.Fatal(err)
	}
	built, err := contents.Build(context.Background(), release, []string{runtime.GOARCH}, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	name, data, err := built.Deb(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// cables connects the box with a client and a pod, which answers at port 8080.
func cables(b *box) {
	b.t.Helper()
	b.run(`set -e
		ip netns add client; ip netns add pod
		ip link add home0 type veth peer name eth0 netns client
		ip link add cluster0 type veth peer name eth0 netns pod
		for n in client pod; do ip -n $n link set lo up; ip -n $n link set eth0 up; done
		ip link set home0 up; ip link set cluster0 up
		ip addr add 10.9.1.1/24 dev home0; ip -n client addr add 10.9.1.2/24 dev eth0
		ip addr add 10.9.2.1/24 dev cluster0; ip -n pod addr add 10.9.2.2/24 dev eth0
		ip -n pod route add default via 10.9.2.1; ip -n client route add default via 10.9.1.1
		echo 1 > /proc/sys/net/ipv4/ip_forward
		systemd-run --quiet --unit echo ip netns exec pod helper help echo :8080
		systemd-run --quiet --unit api helper help api 127.0.0.1:6443`)
}

// everything prints all files of the box but those that come and go in any
// machine. Of /usr, which is this machine's below, it prints what has changed.
const everything = `find / -xdev -not -path '/.upper*' -not -path '/.work*' -not -path '/tmp*' -not -path '/var/tmp*' -not -path '/var/log*' \
	-not -path '/var/cache*' -not -path '/var/lib/dpkg*'
	find /.upper \( -not -type d -o -name '*gatehouse*' \)`

// The package, under a systemd that is process 1 of a machine of its own, from
// its installation until nothing is left of it.
func TestPackageUnderSystemd(t *testing.T) {
	need(t)
	first, second := deb(t, "v1.0.0"), deb(t, "v1.0.1")
	b := newBox(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b.copyIn(self, "/usr/local/bin/helper")
	b.copyIn(first, "/tmp/first.deb")
	b.copyIn(second, "/tmp/second.deb")
	before := b.run(everything)

	stage := func(name string, f func(*testing.T)) {
		if !t.Run(name, func(t *testing.T) {
			b.t = t
			f(t)
		}) {
			t.FailNow()
		}
		b.t = t
	}
	stage("installed, it waits for a configuration", func(t *testing.T) {
		b.run("dpkg -i /tmp/first.deb")
		if said := b.run("gatehouse version"); !strings.HasPrefix(said, "gatehouse v1.0.0 (commit ") || strings.Contains(said, "unknown") {
			t.Fatalf("gatehouse version: %s", said)
		}
		b.same("enabled", b.run("systemctl is-enabled gatehouse"), "enabled")
		b.same("active", b.try("systemctl is-active gatehouse"), "inactive")
		b.same("condition", b.run("systemctl show -p ConditionResult --value gatehouse"), "no")
		b.same("configuration", b.run("stat -c '%%U:%%G %%a' /etc/gatehouse"), "root:gatehouse 750")
		b.run("test -s /usr/share/man/man8/gatehouse.8.gz -a -s /usr/share/bash-completion/completions/gatehouse")
		b.run("gatehouse check -c /usr/share/doc/gatehouse/examples/gatehouse.yaml")
		b.same("what dpkg finds changed", b.run("dpkg --verify gatehouse"), "")
		if said := b.run("systemd-analyze verify --man=no gatehouse.service 2>&1"); strings.Contains(said, "gatehouse") {
			t.Fatalf("systemd-analyze verify: %s", said)
		}
	})
	stage("the network is there", func(*testing.T) { cables(b) })
	ask := func(port string) string {
		return strings.TrimSpace(b.run("ip netns exec client helper help ask %s | cut -d' ' -f2", port))
	}
	stage("configured, it runs with two capabilities", func(*testing.T) {
		b.put("/etc/gatehouse/gatehouse.yaml", fmt.Sprintf(config, ""))
		b.run("gatehouse check -c /etc/gatehouse/gatehouse.yaml")
		b.run("systemctl start gatehouse")
		b.same("active", b.run("systemctl is-active gatehouse"), "active")
		b.same("user", b.run("ps -o user= -p $(systemctl show -p MainPID --value gatehouse)"), "gatehouse")
		b.same("capabilities", b.run("grep CapEff /proc/$(systemctl show -p MainPID --value gatehouse)/status | cut -f2"), "0000000000002400")
		b.same("bounding set", b.run("grep CapBnd /proc/$(systemctl show -p MainPID --value gatehouse)/status | cut -f2"), "0000000000002400")
		b.same("the relay", ask("10.9.1.1:80"), "10.9.2.1")
		b.same("the relay of datagrams", b.run("ip netns exec client helper help askudp 10.9.1.1:80"), "10.9.1.1:80 hello")
		b.same("the wall", b.run("ip netns exec pod helper help ask 10.9.1.1:80 10.9.2.1:80"), "10.9.1.1:80 connection-refused\n10.9.2.1:80 connection-refused")
	})
	stage("what takes CAP_NET_ADMIN is closed, and says so", func(*testing.T) {
		b.put("/etc/gatehouse/kubeconfig", kubeconfig)
		b.run("chmod 600 /etc/gatehouse/kubeconfig; chown gatehouse /etc/gatehouse/kubeconfig")
		b.put("/etc/gatehouse/gatehouse.yaml", fmt.Sprintf(config, administered))
		b.run("systemctl reload gatehouse")
		b.until(10*time.Second, "nat is closed for want of a right", func() error {
			if said := b.try("gatehouse status -c /etc/gatehouse/gatehouse.yaml"); !strings.Contains(said, "CAP_NET_ADMIN") {
				return fmt.Errorf("status says %s", said)
			}
			return nil
		})
		b.same("the relay", ask("10.9.1.1:80"), "10.9.2.1")
		b.same("nat", ask("10.9.1.1:81"), "connection-refused")
	})
	stage("with it, all data planes work", func(*testing.T) {
		b.run(`mkdir -p /etc/systemd/system/gatehouse.service.d
			ln -s /usr/share/gatehouse/net-admin.conf /etc/systemd/system/gatehouse.service.d/
			systemctl daemon-reload && systemctl restart gatehouse`)
		b.same("capabilities", b.run("grep CapEff /proc/$(systemctl show -p MainPID --value gatehouse)/status | cut -f2"), "0000000000003400")
		for _, door := range []struct{ what, address, sees string }{
			{"the relay", "10.9.1.1:80", "10.9.2.1"},
			{"nat", "10.9.1.1:81", "10.9.1.2"},
			{"transparent", "10.9.1.1:82", "10.9.1.2"},
			{"an address of a pool", pooledAddress + ":80", "10.9.2.1"},
		} {
			b.until(10*time.Second, door.what, func() error {
				if got := ask(door.address); got != door.sees {
					return fmt.Errorf("%s: the backend sees %q, want %q\n%s", door.address, got, door.sees, b.try("gatehouse status -c /etc/gatehouse/gatehouse.yaml"))
				}
				return nil
			})
		}
		b.until(5*time.Second, "the state is kept", func() error {
			if out, err := b.command("stat -c '%%U %%a' /var/lib/gatehouse/ && ls -A /var/lib/gatehouse/ | grep -q .").CombinedOutput(); err != nil || string(out) != "gatehouse 700\n" {
				return fmt.Errorf("%s %w", out, err)
			}
			return nil
		})
	})
	stage("members of its group may ask it, and nobody else", func(t *testing.T) {
		b.same("directory", b.run("stat -c '%%U:%%G %%a' /run/gatehouse"), "gatehouse:gatehouse 750")
		b.same("socket", b.run("stat -c '%%U:%%G %%a' /run/gatehouse/api.sock"), "gatehouse:gatehouse 660")
		b.run("useradd --user-group --no-create-home --groups gatehouse carol; useradd --user-group --no-create-home mallory")
		b.run("setpriv --reuid carol --regid carol --init-groups gatehouse status")
		if said := b.try("setpriv --reuid mallory --regid mallory --init-groups cat /etc/gatehouse/gatehouse.yaml /etc/gatehouse/kubeconfig; setpriv --reuid mallory --regid mallory --init-groups gatehouse status --url unix:/run/gatehouse/api.sock"); strings.Count(said, "Permission denied") != 2 || !strings.Contains(said, "you may not ask") {
			t.Fatalf("somebody else: %s", said)
		}
		if said := b.try("setpriv --reuid carol --regid carol --init-groups cat /etc/gatehouse/kubeconfig"); !strings.Contains(said, "Permission denied") {
			t.Fatalf("a member of the group reads the kubeconfig: %s", said)
		}
		b.run("userdel carol; userdel mallory")
	})
	stage("its sandbox holds", func(*testing.T) {
		pid := strings.TrimSpace(b.run("systemctl show -p MainPID --value gatehouse"))
		for file, want := range map[string]string{
			"/": "ro", "/usr": "ro", "/etc": "ro", "/proc/sys": "ro", "/sys": "ro", "/var/lib/private/gatehouse": "rw", "/run/gatehouse": "rw", "/tmp": "rw",
		} {
			b.same(file, b.run("nsenter -t %s -m findmnt -n -o VFS-OPTIONS -T %s | tail -1 | cut -d, -f1", pid, file), want)
		}
		b.same("no new privileges, a filter of system calls", b.run("grep -e NoNewPrivs -e Seccomp: /proc/%s/status | cut -f2 | tr '\\n' ' '", pid), "1 2")
		b.same("core files", b.run("grep 'Max core' /proc/%s/limits | tr -s ' ' | cut -d' ' -f5,6", pid), "0 0")
	})
	stage("an upgrade of the package cuts nothing", func(t *testing.T) {
		pid := strings.TrimSpace(b.run("systemctl show -p MainPID --value gatehouse"))
		client := b.command("ip netns exec client helper help hold 10.9.1.1:80 6")
		said := make(chan string, 1)
		go func() {
			out, err := client.CombinedOutput()
			said <- fmt.Sprint(string(out), err)
		}()
		b.run("dpkg -i /tmp/second.deb")
		if now := strings.TrimSpace(b.run("systemctl show -p MainPID --value gatehouse")); now == pid {
			t.Fatalf("the main process is still %s", now)
		}
		b.same("what runs", b.run("gatehouse status -c /etc/gatehouse/gatehouse.yaml | grep -c 'version v1.0.1'"), "1")
		if got := <-said; !strings.HasPrefix(got, "held, ") || !strings.Contains(got, ", 0 failed") {
			t.Fatalf("a client during the upgrade: %s", got)
		} else {
			t.Logf("a client during the upgrade: %s", got)
		}
		b.same("restarts", b.run("systemctl show -p NRestarts --value gatehouse"), "0")
		for _, door := range []string{"10.9.1.1:80", "10.9.1.1:81", "10.9.1.1:82", pooledAddress + ":80"} {
			if got := ask(door); !strings.HasPrefix(got, "10.9.") {
				t.Fatalf("%s after the upgrade: %s", door, got)
			}
		}
	})
	stage("a crash, a stop, a start", func(*testing.T) {
		b.run("systemctl kill -s KILL gatehouse")
		b.until(10*time.Second, "it is started again", func() error {
			if got := ask("10.9.1.1:80"); got != "10.9.2.1" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		b.run("systemctl stop gatehouse")
		b.same("the relay", ask("10.9.1.1:80"), "connection-refused")
		b.same("nat, which the kernel goes on with", ask("10.9.1.1:81"), "10.9.1.2")
		b.run("systemctl start gatehouse")
		b.same("the relay", ask("10.9.1.1:80"), "10.9.2.1")
	})
	stage("without the package's user, systemd makes one up", func(*testing.T) {
		b.run("systemctl stop gatehouse; userdel gatehouse; groupdel gatehouse; chmod 755 /etc/gatehouse; chmod 644 /etc/gatehouse/*")
		b.run("systemctl start gatehouse")
		// systemd's range for them, systemd.exec(5).
		b.run("uid=$(stat -c %%u /proc/$(systemctl show -p MainPID --value gatehouse)); test $uid -ge 61184 -a $uid -le 65519")
		b.same("in no file", b.try("grep -c gatehouse /etc/passwd"), "0")
		b.same("the relay", ask("10.9.1.1:80"), "10.9.2.1")
	})
	stage("removed, nothing runs; purged, nothing is left", func(t *testing.T) {
		b.run("dpkg -r gatehouse")
		b.same("active", b.try("systemctl is-active gatehouse"), "inactive")
		b.same("tables", b.run("nft list tables"), "")
		b.same("addresses", b.run("ip -o addr show dev home0 | grep -c %s || true", pooledAddress), "0")
		b.run("test -e /etc/gatehouse/kubeconfig")
		b.run("dpkg -P gatehouse")
		after := b.run(everything)
		known := map[string]bool{}
		for line := range strings.Lines(before) {
			known[line] = true
		}
		for line := range strings.Lines(after) {
			// What other programs keep copies in.
			if name := strings.TrimSpace(line); !known[line] && !strings.HasSuffix(name, "-") && name != "/etc/.pwd.lock" {
				t.Errorf("left: %s", name)
			}
		}
		b.same("user", b.try("getent passwd gatehouse; getent group gatehouse"), "")
		b.same("package", b.try("dpkg -s gatehouse >/dev/null 2>&1 || echo gone"), "gone")
	})
}
