package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/trial"
)

// Operator is what somebody may have done who could change the files as well. It
// is there at Unix sockets only, for root and for the user that this process has:
// the kernel says who has connected (SO_PEERCRED, unix(7)), and the group of the
// socket, which may look, may not do this.
type Operator struct {
	Apply   func(offer trial.Offer, by string) (trial.State, error)
	Confirm func(id string) error
	Revert  func(id string) error
	Trial   func() trial.State
}

// bodyTime is how long what an operator sends may take.
const bodyTime = 10 * time.Second

// peerKey is where a request's context has the uid of who asks.
type peerKey struct{}

// withPeer notes who has connected to a Unix socket. Of everybody else nothing is
// noted.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if v, ok := c.(*visitor); ok {
		c = v.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || failed != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred.Uid)
}

// operators answers those paths that change something, and leaves the rest to
// the site.
type operators struct {
	Operator
	log  *slog.Logger
	next http.Handler
}

func (o operators) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer func(by string) (any, error)
	method := http.MethodPost
	switch r.URL.Path {
	case trial.PathApply:
		answer = func(by string) (any, error) {
			var offer trial.Offer
			if err := read(w, r, &offer); err != nil {
				return nil, err
			}
			return o.Apply(offer, by)
		}
	case trial.PathConfirm:
		answer = func(string) (any, error) { return o.choose(w, r, o.Confirm) }
	case trial.PathRevert:
		answer = func(string) (any, error) { return o.choose(w, r, o.Revert) }
	case trial.PathTrial:
		method = http.MethodGet
		answer = func(string) (any, error) { return o.Trial(), nil }
	default:
		o.next.ServeHTTP(w, r)
		return
	}
	protect(w.Header())
	by, err := operator(r)
	switch {
	case err != nil:
		o.log.Warn("not an operator", "path", r.URL.Path, "err", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	case r.Method != method:
		w.Header().Set("Allow", method)
		http.Error(w, "This takes "+method+".", http.StatusMethodNotAllowed)
		return
	case method == http.MethodPost && !isJSON(r.Header.Get("Content-Type")):
		// Nor can a page in a browser send it to somewhere else unasked.
		http.Error(w, "This takes application/json.", http.StatusUnsupportedMediaType)
		return
	}
	said, err := answer(by)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(said); err != nil {
		o.log.Debug("answer not written", "err", err)
	}
}

func (o operators) choose(w http.ResponseWriter, r *http.Request, end func(id string) error) (any, error) {
	var choice trial.Choice
	if err := read(w, r, &choice); err != nil {
		return nil, err
	}
	if err := end(choice.ID); err != nil {
		return nil, err
	}
	return o.Trial(), nil
}

var errNotOperator = errors.New("only root, and the user that gatehouse runs as, may change what runs")

// operator says who asks, if he may change what runs.
func operator(r *http.Request) (string, error) {
	uid, known := r.Context().Value(peerKey{}).(uint32)
	switch {
	case !known:
		return "", errNotOperator
	case uid != 0 && uint64(uid) != uint64(os.Geteuid()):
		return "", fmt.Errorf("%w: uid %d may not", errNotOperator, uid)
	}
	return fmt.Sprintf("uid %d", uid), nil
}

func isJSON(header string) bool {
	kind, _, err := mime.ParseMediaType(header)
	return err == nil && kind == "application/json"
}

// read decodes what was sent, and nothing that is none of ours.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	// A test's recorder has no deadline, and needs none.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, trial.MaxSize))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("what was sent is not understood: %w", err)
	}
	return nil
}
