package site_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/lab/site"
)

// An etcd that hangs: the API server is there and cannot say anything.
func TestPausedAndResumed(t *testing.T) {
	s := lab(t)
	if err := s.Pause(t.Context(), "etcd"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Resume(context.Background(), "etcd") }()
	if out, err := s.Kubectl(t.Context(), "get", "--raw", "/readyz", "--request-timeout=1s"); err == nil {
		t.Errorf("the API server is ready without etcd: %s", out)
	}
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Components {
		if paused := c.State == "paused"; paused != (c.Name == "etcd") {
			t.Errorf("%s is said to be %s", c.Name, c.State)
		}
	}
	if err := s.Resume(t.Context(), "etcd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "ready", func() error {
		_, err := s.Kubectl(t.Context(), "get", "--raw", "/readyz", "--request-timeout=1s")
		return err
	})
}

func reaches(s *site.Site, from, address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := s.Dialer(from)(ctx, "tcp", address)
	if err == nil {
		err = conn.Close()
	}
	return err
}

func TestCutAndMended(t *testing.T) {
	s := lab(t)
	if err := s.Cut(t.Context(), "edge", "cp"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Mend(context.Background(), "edge", "cp") }()
	for _, address := range []string{site.APIServer, "[fd00:10::10]:6443"} {
		var timeout interface{ Timeout() bool }
		if err := reaches(s, "edge", address); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("the edge and %s: %v, want silence", address, err)
		}
		if err := reaches(s, "w1", address); err != nil {
			t.Errorf("a worker and %s: %v", address, err)
		}
	}
	if err := reaches(s, "edge", "10.0.0.101:10256"); err != nil {
		t.Errorf("the edge and a worker: %v", err)
	}
	if err := s.Cut(t.Context(), "w1", "w2"); err == nil || !strings.Contains(err.Error(), "mend them first") {
		t.Errorf("a second cut in the same network: %v", err)
	}
	if err := s.Cut(t.Context(), "home1", "cp"); err == nil || !strings.Contains(err.Error(), "share no network") {
		t.Errorf("a cut where no cable is: %v", err)
	}
	if err := s.Mend(t.Context(), "cp", "edge"); err != nil {
		t.Fatal(err)
	}
	if err := reaches(s, "edge", site.APIServer); err != nil {
		t.Errorf("mended: %v", err)
	}
}

// A second interface in a network that is there, and one in a network that is not.
func TestAttachedAndDetached(t *testing.T) {
	s := lab(t)
	ctx := t.Context()
	for _, a := range [][]string{
		{"edge", "eth2", "garden", "10.11.13.32/24", "fd00:11:13::32/64"},
		{"home2", "eth1", "garden", "10.11.13.102/24", "fd00:11:13::102/64"},
		{"edge", "eth3", "home", "10.11.12.33/24"},
	} {
		if err := s.Attach(ctx, a[0], a[1], a[2], a[3:]...); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Detach(context.Background(), a[0], a[1]); err != nil {
				t.Error(err)
			}
		}()
	}
	listenOn(t, s, "eth2", 9995)
	listenOn(t, s, "eth3", 9995)
	for from, address := range map[string]string{"home2": "10.11.13.32", "home1": "10.11.12.33"} {
		if _, err := heardOn(s, from, address+":9995"); err != nil {
			t.Errorf("%s to %s: %v", from, address, err)
		}
	}
	if out, err := s.Exec(ctx, "home2", "ping", "-6", "-c", "1", "-W", "2", "fd00:11:13::32"); err != nil {
		t.Errorf("IPv6: %s%v", out, err)
	}
	if err := s.LinkDown("edge", "eth2"); err != nil {
		t.Fatal(err)
	}
	if _, err := heardOn(s, "home2", "10.11.13.32:9995"); err == nil {
		t.Error("reached without a cable")
	}
	if err := s.Attach(ctx, "nas", "eth1", "home"); err == nil {
		t.Error("there is no host nas")
	}
}

// Who was away while etcd forgot must list again.
func TestCompacted(t *testing.T) {
	s := lab(t)
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	old, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, s, "create", "service", "externalname", "compacted", "--external-name=x.example")
	defer kubectl(t, s, "delete", "service", "compacted")
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Stop(t.Context(), "kube-apiserver"), s.Start(t.Context(), "kube-apiserver")); err != nil {
		t.Fatal(err)
	}
	_, err = client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{
		ResourceVersion: old.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact,
	})
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("what there was then: %v, want 410", err)
	}
	w, err := client.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: old.ResourceVersion})
	if err == nil {
		defer w.Stop()
		select {
		case e := <-w.ResultChan():
			err = apierrors.FromObject(e.Object)
		case <-time.After(5 * time.Second):
			err = errors.New("nothing in five seconds")
		}
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("a watch from before: %v, want 410", err)
	}
}

// The API server loses everything, and has it back: what runs has not noticed.
func TestStoreEmptiedAndRestored(t *testing.T) {
	s := lab(t)
	port := deploy(t, s, "emptied", 3, webContainer)
	url := "http://10.0.0.101:" + port + "/"
	// After the outages of other tests, kube-proxies may wait long before they ask again.
	eventually(t, 3*time.Minute, "served", func() error { _, err := ask(s, "edge", url); return err })
	before := kubectl(t, s, "-n", "emptied", "get", "pods", "-o", "name")
	path, err := s.TokenKubeconfig(t.Context(), "emptied", "default", time.Hour)
	if err != nil {
		t.Fatal(err)
	}

	if err := s.EmptyStore(t.Context(), "/registry/namespaces/emptied", "/registry/serviceaccounts/emptied/"); err != nil {
		t.Fatal(err)
	}
	restored := false
	defer func() {
		if !restored {
			_ = s.RestoreStore(context.Background())
		}
	}()
	if out := kubectl(t, s, "get", "services,nodes,pods", "-A", "-o", "name"); out != "service/kubernetes" {
		t.Errorf("this is left: %s", out)
	}
	if out := kubectl(t, s, "--kubeconfig", path, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); out != "system:serviceaccount:emptied:default" {
		t.Errorf("a token of an account that was carried over is %q's", out)
	}
	if _, err := ask(s, "edge", url); err != nil {
		t.Errorf("what runs: %v", err)
	}
	if err := s.EmptyStore(t.Context()); err == nil {
		t.Error("emptied twice, the first content is lost")
	}

	if err := s.RestoreStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	restored = true
	if after := kubectl(t, s, "-n", "emptied", "get", "pods", "-o", "name"); after != before {
		t.Errorf("pods before %s, after %s", before, after)
	}
	kubectl(t, s, "-n", "emptied", "scale", "deployment", "web", "--replicas=6")
	if err := s.AwaitDeployment(t.Context(), "emptied", "web", time.Minute); err != nil {
		t.Error(err)
	}
	if _, err := ask(s, "edge", fmt.Sprintf("http://10.0.0.101:%s/", port)); err != nil {
		t.Error(err)
	}
}
