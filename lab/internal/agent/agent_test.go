package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"e13.dev/gatehouse/lab/site"
)

func testAgent(t *testing.T) *Agent {
	t.Helper()
	cidr := netip.MustParsePrefix("10.244.1.0/24")
	return &Agent{
		cfg: Config{
			Lab: "x", Node: "w1", Address: netip.MustParseAddr("10.0.0.101"), Address6: netip.MustParseAddr("fd00:10::101"),
			PodCIDR: cidr, PodCIDR6: netip.MustParsePrefix("fd00:244:1::/64"), Dir: "/state",
		},
		log:  slog.New(slog.DiscardHandler),
		pods: map[types.UID]*pod{}, ips: map[netip.Addr]types.UID{}, last: cidr.Addr().Next(),
	}
}

// A connection that is still on its way to a pod that has gone must not end up in the next one: addresses are
// given out in turn, and come back only after all others.
func TestAddressesRestBeforeReuse(t *testing.T) {
	a := testAgent(t)
	first, err := a.takeIP("a")
	if err != nil || first.String() != "10.244.1.2" {
		t.Fatalf("first address %s, %v", first, err)
	}
	delete(a.ips, first)
	seen := map[netip.Addr]bool{}
	for range 252 {
		ip, err := a.takeIP("b")
		if err != nil {
			t.Fatal(err)
		}
		if seen[ip] || ip == first {
			t.Fatalf("%s again after %d others", ip, len(seen))
		}
		seen[ip] = true
	}
	if last, err := a.takeIP("c"); err != nil || last != first {
		t.Errorf("the only free address is %s; got %s, %v", first, last, err)
	}
	if ip, err := a.takeIP("d"); err == nil {
		t.Errorf("%s is given out twice", ip)
	}
	for _, reserved := range []string{"10.244.1.0", "10.244.1.1", "10.244.1.255"} {
		if seen[netip.MustParseAddr(reserved)] {
			t.Errorf("%s is no pod's address", reserved)
		}
	}
}

// Somebody else's image: a program of its own, by its entry point, by its name in the image, or any other program.
func TestImagesOfOthers(t *testing.T) {
	a := testAgent(t)
	a.cfg.Dir = t.TempDir()
	file := filepath.Join(a.cfg.Dir, site.ImagesFile)
	err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
		os.WriteFile(file, []byte(`{"registry.example:5000/tests/agnhost":["/b/agnhost"],"registry.example/pause":["/b/agnhost","pause"]}`), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		spec corev1.Container
		want string
	}{
		{corev1.Container{Image: "registry.example:5000/tests/agnhost:2.1", Args: []string{"netexec"}}, "/b/agnhost netexec"},
		{corev1.Container{Image: "registry.example:5000/tests/agnhost:2.1", Command: []string{"/agnhost", "porter"}}, "/b/agnhost porter"},
		{corev1.Container{Image: "registry.example:5000/tests/agnhost@sha256:1", Command: []string{"sh", "-c"}, Args: []string{"x"}}, "sh -c x"},
		{corev1.Container{Image: "registry.example/pause:3"}, "/b/agnhost pause"},
		{corev1.Container{Image: "lab/host", Command: []string{"/agnhost"}}, "/agnhost"},
	} {
		p := newPod(a, site.PodRecord{Namespace: "n", Name: "p", UID: "u", Netns: "x"})
		p.obj = &corev1.Pod{}
		got, err := p.argv(tt.spec)
		if i := slices.Index(got, "--"); err != nil || strings.Join(got[i+1:], " ") != tt.want {
			t.Errorf("%s %v %v: %q, %v; want %s", tt.spec.Image, tt.spec.Command, tt.spec.Args, got, err, tt.want)
		}
	}
}

// A person who knows one address of a pod knows the other.
func TestLastNumbersAreTheSame(t *testing.T) {
	a := testAgent(t)
	for four, six := range map[string]string{
		"10.244.1.2": "fd00:244:1::2", "10.244.1.17": "fd00:244:1::17", "10.244.1.109": "fd00:244:1::109", "10.244.1.254": "fd00:244:1::254",
	} {
		if got := a.sixth(netip.MustParseAddr(four)); got != netip.MustParseAddr(six) {
			t.Errorf("beside %s: %s, want %s", four, got, six)
		}
	}
}

func TestCommandLines(t *testing.T) {
	a := testAgent(t)
	for _, tt := range []struct {
		name  string
		spec  corev1.Container
		netns string
		want  []string
		err   string
	}{
		{name: "default port", spec: corev1.Container{Image: "lab/web"}, want: []string{"/state/bin/lab", "_pod", "web"}},
		{
			name: "port, tag, argument",
			spec: corev1.Container{Image: "docker.io/lab/echo:1", Args: []string{"--linger", "0"}, Ports: []corev1.ContainerPort{{ContainerPort: 7}}},
			want: []string{"/state/bin/lab", "_pod", "echo", "--port=7", "--linger", "0"},
		},
		{
			name: "program of the machine", netns: "ghlab-x-p-1",
			spec: corev1.Container{
				Image: "lab/host", Command: []string{"nginx", "$(CONF)", "$(NOBODY)"}, Args: []string{"-x"},
				Env: []corev1.EnvVar{{Name: "CONF", Value: "a b"}},
			},
			want: []string{"/state/bin/lab", "_enter", "ghlab-x-p-1", "--bind", "/state/pods/w1/u/run:/run", "--bind", "/state/pods/w1/u/resolv.conf:/etc/resolv.conf", "--hostname", "h", "--", "nginx", "a b", "$(NOBODY)", "-x"},
		},
		{
			name: "in the node's network",
			spec: corev1.Container{Image: "lab/host", Command: []string{"true"}},
			want: []string{"/state/bin/lab", "_enter", "ghlab-x-w1", "--bind", "/state/pods/w1/u/run:/run", "--hostname", "w1", "--", "true"},
		},
		{name: "no command", spec: corev1.Container{Image: "lab/host"}, err: "image lab/host: no command given; it runs a program of the machine"},
		{name: "unknown", spec: corev1.Container{Image: "nginx:1"}, err: `image "nginx:1": the lab has lab/web, lab/tls, lab/echo and lab/host`},
		{
			name: "secret", spec: corev1.Container{Image: "lab/web", Env: []corev1.EnvVar{{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{}}}}},
			err: "env S: the lab knows plain values and fieldRef",
		},
	} {
		p := newPod(a, site.PodRecord{Namespace: "n", Name: "p", Hostname: "h", UID: "u", Netns: tt.netns})
		p.obj = &corev1.Pod{}
		got, err := p.argv(tt.spec)
		message := ""
		if err != nil {
			message = err.Error()
		}
		if !slices.Equal(got, tt.want) || message != tt.err {
			t.Errorf("%s: %q, %q\nwant %q, %q", tt.name, got, message, tt.want, tt.err)
		}
	}
}

func TestPhase(t *testing.T) {
	running := &container{running: true}
	ended := func(code int32) *container { return &container{ended: &exit{code: code}} }
	refused := &container{refused: "no such image"}
	for _, tt := range []struct {
		name       string
		policy     corev1.RestartPolicy
		ending     bool
		containers []*container
		want       corev1.PodPhase
	}{
		{"nothing started", corev1.RestartPolicyAlways, false, nil, corev1.PodPending},
		{"cannot start", corev1.RestartPolicyAlways, false, []*container{running, refused}, corev1.PodPending},
		{"runs", corev1.RestartPolicyAlways, false, []*container{running}, corev1.PodRunning},
		{"is restarted", corev1.RestartPolicyAlways, false, []*container{ended(1)}, corev1.PodRunning},
		{"is deleted", corev1.RestartPolicyAlways, true, []*container{ended(0)}, corev1.PodSucceeded},
		{"a job has done its work", corev1.RestartPolicyOnFailure, false, []*container{ended(0)}, corev1.PodSucceeded},
		{"a job is tried again", corev1.RestartPolicyOnFailure, false, []*container{ended(1)}, corev1.PodRunning},
		{"failed for good", corev1.RestartPolicyNever, false, []*container{ended(0), ended(3)}, corev1.PodFailed},
		{"half of it has ended", corev1.RestartPolicyNever, false, []*container{ended(0), running}, corev1.PodRunning},
	} {
		p := newPod(testAgent(t), site.PodRecord{})
		p.obj = &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: tt.policy}}
		p.containers, p.ending = tt.containers, tt.ending
		if got := p.phase(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestLastLines(t *testing.T) {
	for _, tt := range []struct {
		data string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\n", 5, "a\n"},
		{"a\n", 0, ""},
		{"", 3, ""},
	} {
		if got := string(lastLines([]byte(tt.data), tt.n)); got != tt.want {
			t.Errorf("last %d of %q: %q, want %q", tt.n, tt.data, got, tt.want)
		}
	}
}
