package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"e13.dev/gatehouse/internal/config"
)

const (
	// maxToken is in bytes: what is longer is another file.
	maxToken = 4096
	// tokenInterval is how soon a file is noticed that has become bad.
	tokenInterval = 2 * time.Second
)

// A token is what has to be shown where the status page is not for everybody. It
// is read anew when its file has changed, so that one that is replaced lets
// nobody in any more.
type token struct {
	mu      sync.Mutex
	path    string // empty: there is none
	seen    fileState
	current string // empty: nobody gets in
	fault   string // what is wrong with the file
	remedy  string
}

// fileState is what changes with the content of a file, or with who may read it.
type fileState struct {
	inode            uint64
	size             int64
	modified, status syscall.Timespec
	err              string
}

// use goes on with the token in another file.
func (t *token) use(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if path != t.path {
		t.path, t.seen = path, fileState{}
		t.current, t.fault, t.remedy = "", "", ""
	}
	t.lookLocked()
}

// get is what has to be shown now.
func (t *token) get() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lookLocked()
	return t.current
}

// problem says what is wrong with the file, and what would be right.
func (t *token) problem() (what, remedy string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fault, t.remedy
}

// run tells when a file becomes bad or good while nobody asks.
func (t *token) run(ctx context.Context, changed func()) error {
	again := time.NewTicker(tokenInterval)
	defer again.Stop()
	last, _ := t.problem()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
		t.get()
		if now, _ := t.problem(); now != last {
			last = now
			changed()
		}
	}
}

func (t *token) lookLocked() {
	if t.path == "" {
		return
	}
	now := fileStateOf(t.path)
	if now == t.seen {
		return
	}
	t.seen = now
	t.current, t.fault, t.remedy = "", "", ""
	text, mode, err := readToken(t.path)
	if err != nil {
		t.fault, t.remedy = err.Error()+": nobody is let in", "write a file with the token, of "+fmt.Sprint(config.MinTokenLength)+" characters or more, that gatehouse may read"
		return
	}
	t.current = text
	if mode.Perm()&0o007 != 0 {
		t.fault, t.remedy = t.path+" can be read or written by every user of this machine", "chmod 640 "+t.path+", with the group of gatehouse, or 600 if it is gatehouse's own"
	}
}

func fileStateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{err: err.Error()}
	}
	s := info.Sys().(*syscall.Stat_t)
	return fileState{inode: s.Ino, size: s.Size, modified: s.Mtim, status: s.Ctim}
}

// readToken names the file in its errors, and never what is in it.
func readToken(path string) (string, os.FileMode, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", 0, err
	}
	if !info.Mode().IsRegular() {
		return "", 0, fmt.Errorf("%s is not a file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxToken+1))
	if err != nil {
		return "", 0, err
	}
	text, err := parseToken(data)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", path, err)
	}
	return text, info.Mode(), nil
}

// parseToken reads the content of a file: the token, with white space around it.
func parseToken(data []byte) (string, error) {
	if len(data) > maxToken {
		return "", fmt.Errorf("more than %d bytes are no token", maxToken)
	}
	text := strings.TrimSpace(string(data))
	switch {
	case text == "":
		return "", errors.New("there is no token in it")
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", errors.New("a token is one word of printable ASCII characters")
	case len(text) < config.MinTokenLength:
		return "", fmt.Errorf("the token has fewer than %d characters", config.MinTokenLength)
	}
	return text, nil
}
