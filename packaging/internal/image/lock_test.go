package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func checksum(data string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(data))) }

func TestNothingIsTakenThatHasAnotherChecksum(t *testing.T) {
	dir := t.TempDir()
	sent := "a package"
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/pool/p.deb" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, sent)
	}))
	defer mirror.Close()
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	p := Locked{Architecture: "arm64", Name: "p", Version: "1", Path: "pool/p.deb", Size: 9, SHA256: checksum("a package")}
	mirrors := []string{empty.URL, mirror.URL + "/"}
	got, err := Lock{p}.Fetch(context.Background(), "arm64", dir, mirrors)
	if err != nil || string(got["p"]) != "a package" {
		t.Fatalf("%q, %v", got, err)
	}
	// From what is kept, without a mirror.
	if _, err := (Lock{p}).Fetch(context.Background(), "arm64", dir, nil); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, p.SHA256+".deb"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := (Lock{p}).Fetch(context.Background(), "arm64", dir, mirrors); err != nil || string(got["p"]) != "a package" {
		t.Errorf("what is kept is broken: %q, %v", got, err)
	}
	sent = "another 1"
	_, err = Lock{p}.Fetch(context.Background(), "arm64", t.TempDir(), mirrors)
	for _, part := range []string{"p 1 (arm64) is at none of the mirrors", "make image-lock", "404 Not Found", "another checksum"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in: %v", part, err)
		}
	}
	if _, err := (Lock{p}).Fetch(context.Background(), "riscv64", dir, nil); err == nil {
		t.Error("an architecture that is not in the lock")
	}
}

func TestLockSaysWhatIsWrong(t *testing.T) {
	sum := checksum("a package")
	file := filepath.Join(t.TempDir(), "image.lock")
	for text, want := range map[string]string{
		"# comment\n\namd64 p 1 " + sum + " 9 pool/p.deb\n": "",
		"# comment\namd64 p 1\n":                            "image.lock:2: 3 words; write ARCHITECTURE NAME VERSION SHA256 SIZE PATH",
		"amd64 p 1 abc 9 pool/p.deb\n":                      "image.lock:1: a checksum of 64 hexadecimal digits and a size are wanted; have abc 9",
		"amd64 p 1 " + sum + " big pool/p.deb\n":            "image.lock:1: a checksum",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadLock(file); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
