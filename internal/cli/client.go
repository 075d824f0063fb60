package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/internal/config"
)

const (
	// defaultSocket is asked where nothing is said.
	defaultSocket = "/run/gatehouse/api.sock"
	// A daemon answers at once; with ten thousand frontends it takes a second.
	patience = 10 * time.Second
)

// askedWhere is for the help of commands that ask the running daemon.
const askedWhere = `The daemon is asked at admin.socket or admin.listen of the files (-c), or at --url;
if neither is given, at ` + defaultSocket + `, or else at 127.0.0.1:9180.`

// whom says which daemon is asked.
type whom struct {
	files     []string
	url       string
	tokenFile string
}

func (w *whom) addTo(cmd *cobra.Command) {
	addFiles(cmd, &w.files)
	cmd.Flags().StringVar(&w.url, "url", "", "ask the daemon at this `URL` (http://127.0.0.1:9180, or unix:/run/gatehouse/api.sock), whatever the files say")
	cmd.Flags().StringVar(&w.tokenFile, "token-file", "", "the `FILE` with the token that the daemon wants, where it wants one (admin.tokenFile)")
}

// client is for the daemon that is to be asked.
func (w *whom) client(stderr io.Writer) (*client, error) {
	if w.url != "" || len(w.files) == 0 {
		return w.clientOf(nil)
	}
	c, err := load(stderr, w.files)
	if err != nil {
		fmt.Fprintln(stderr, "so these files do not say where the daemon is asked; --url does, such as --url unix:"+defaultSocket+" or --url http://127.0.0.1:9180")
		return nil, err
	}
	if c.Admin.Socket == "" && c.Admin.Listen == "" {
		if len(c.Admin.Zones) == 0 {
			return nil, fmt.Errorf("%s: there is no admin block, so the daemon cannot be asked; add admin: {socket: %s}", strings.Join(w.files, ", "), defaultSocket)
		}
		return nil, fmt.Errorf("%s: the daemon is to be asked in zones only; give an address of this machine there with --url http://ADDRESS:%d --token-file FILE, or add admin: {socket: %s}", strings.Join(w.files, ", "), c.Admin.Port, defaultSocket)
	}
	return w.clientOf(c)
}

// clientOf is for the daemon at --url, or else where the files say, or else where
// it mostly is. c may be nil.
func (w *whom) clientOf(c *config.Config) (*client, error) {
	where, tokenFile := w.url, w.tokenFile
	switch {
	case where != "":
	case c != nil && c.Admin.Socket != "" && (c.Admin.Listen == "" || isThere(c.Admin.Socket)):
		where = "unix:" + c.Admin.Socket
	case c != nil && c.Admin.Listen != "":
		where = reachable(c.Admin.Listen)
		if tokenFile == "" && !c.Admin.OnLoopback() {
			tokenFile = c.Admin.TokenFile
		}
	default:
		where = "unix:" + defaultSocket
		if !isThere(defaultSocket) {
			where = "127.0.0.1:9180"
		}
	}
	return newClient(where, tokenFile)
}

// isThere says whether there is such a socket: a daemon that could not make it, or
// that has older files, may still answer elsewhere.
func isThere(socket string) bool {
	_, err := os.Stat(socket)
	return !errors.Is(err, fs.ErrNotExist)
}

// client asks a running daemon.
type client struct {
	base  *url.URL
	where string // as it is told to people
	token string // empty: none
	http  http.Client
}

// newClient makes a client of whatever names a daemon: "127.0.0.1:9180", the URL
// of its page, that of its status, "unix:/run/gatehouse/api.sock".
func newClient(where, tokenFile string) (*client, error) {
	// No proxy of the environment is asked instead. A password is not repeated: it may
	// be the token.
	transport := &http.Transport{DisableKeepAlives: true}
	c := &client{where: withoutLogin(where), http: http.Client{Timeout: patience, Transport: transport}}
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		path = "/" + strings.TrimLeft(path, "/")
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
		c.base, c.where = &url.URL{Scheme: "http", Host: "localhost"}, path
	} else {
		if !strings.Contains(where, "://") {
			where = "http://" + where
		}
		u, err := url.Parse(where)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, usageError{fmt.Errorf("--url %q: write the URL of the status page, such as http://127.0.0.1:9180", withoutLogin(where))}
		}
		u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/status.json"), "/")
		c.base = u
	}
	if tokenFile != "" {
		token, err := os.ReadFile(tokenFile)
		if err != nil {
			return nil, fmt.Errorf("the token of the daemon: %w", err)
		}
		c.token = strings.TrimSpace(string(token))
	}
	return c, nil
}

// withoutLogin is a URL as somebody has written it, without who logs in.
func withoutLogin(where string) string {
	scheme, rest, ok := strings.Cut(where, "://")
	if scheme += "://"; !ok {
		scheme, rest = "", where
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	return scheme + rest[strings.LastIndexByte(rest[:end], '@')+1:]
}

func (c *client) String() string { return c.where }

// get fetches what is at a path. An answer of 400 is what the daemon says of the
// question, and the error.
func (c *client) get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	u := *c.base
	u.Path += path
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.silence(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, c.silence(err)
	case resp.StatusCode == http.StatusUnauthorized && c.token != "":
		return nil, fmt.Errorf("%s wants another token than that of --token-file: give the file that admin.tokenFile of the daemon names, as it is now", c)
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%s wants a token: give the file that has it with --token-file FILE (admin.tokenFile of the daemon)", c)
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%s: %s", c, strings.TrimSpace(string(data)))
	case resp.StatusCode == http.StatusBadRequest:
		return nil, usageError{errors.New(strings.TrimSpace(string(data)))}
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %s: that is no gatehouse, or an older one", c, resp.Status)
	}
	return data, nil
}

// silence says why there was no answer.
func (c *client) silence(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nothing listens at %s: gatehouse does not run, or its admin block says something else; give its file with -c FILE, or --url URL", c)
	case errors.Is(err, fs.ErrPermission) && strings.HasPrefix(c.where, "/"):
		return fmt.Errorf("you may not ask at %s: who is in the group of that socket may, and root", c)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s has not answered within %s", c, c.http.Timeout)
	}
	if inner, ok := errors.AsType[*url.Error](err); ok {
		err = inner.Err // which repeats the address
	}
	return fmt.Errorf("%s does not answer: %w", c, err)
}

// reachable is where a listen address is reached from this machine.
func reachable(listen string) string {
	a, err := netip.ParseAddrPort(listen)
	switch {
	case err != nil || !a.Addr().IsUnspecified():
		return listen
	case a.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port()).String()
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), a.Port()).String()
	}
}
