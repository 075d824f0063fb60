package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Access says who is answered at a listener. With the zero Access that is
// everybody who can connect: the permissions of a Unix socket say who that is.
type Access struct {
	// Token is what has to be shown; nil: nothing has. While it returns "" nothing
	// that is shown is right.
	Token func() string
	// Local is a listener at a loopback address. Browsers of this machine can be
	// led there by names that somebody else owns (DNS rebinding), so they may
	// come by an address or as localhost only.
	Local bool
	// Operator is for a Unix socket: what root and our own user may have done there.
	Operator *Operator
}

// guard is what stands between a listener and the site.
type guard struct {
	Access
	log     *slog.Logger
	guesses *guesses
	next    http.Handler
}

func (a Access) guard(next http.Handler, log *slog.Logger) http.Handler {
	return &guard{Access: a, log: log, guesses: newGuesses(), next: next}
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	protect(w.Header())
	switch {
	case r.ContentLength != 0:
		// It would be waited for, to be thrown away.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now())
		http.Error(w, "There is nothing here to send to.", http.StatusBadRequest)
	case g.Local && !isLocal(r.Host):
		http.Error(w, "This is served to this machine: ask for it by an address, or as localhost.", http.StatusForbidden)
	case foreign(r.Header):
		http.Error(w, "A page of another site may link here, and not read or embed what is here.", http.StatusForbidden)
	case g.Token == nil:
		g.next.ServeHTTP(w, r)
	default:
		g.ask(w, r)
	}
}

// protect sets what holds for every answer. A handler that serves a page sets a
// policy of its own.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// foreign says whether a browser asks on behalf of another site (Fetch Metadata):
// it would send along the password that it knows, and such a site could keep
// connections open. A link may lead here from anywhere. (http.CrossOriginProtection
// lets every GET through, since a GET changes nothing; there is nothing but GET here.)
func foreign(h http.Header) bool {
	switch h.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return false
	default:
		return h.Get("Sec-Fetch-Mode") != "navigate" || h.Get("Sec-Fetch-Dest") != "document"
	}
}

// isLocal says whether the Host header is an address or localhost, with a port
// or without.
func isLocal(host string) bool {
	if name, port, err := net.SplitHostPort(host); err == nil {
		if strings.Trim(port, "0123456789") != "" {
			return false
		}
		host = name
	} else if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Zone() == "" || strings.EqualFold(host, "localhost")
}

// ask lets those in who show the token. Whether gatehouse lives, and is ready,
// everybody may know; why it is not ready is in a body that others do not get.
func (g *guard) ask(w http.ResponseWriter, r *http.Request) {
	token, shown := tokenOf(r)
	client := clientOf(r.RemoteAddr)
	switch {
	case shown && g.guesses.tooMany(client, time.Now()):
		w.Header().Set("Retry-After", strconv.Itoa(int(guessTime.Seconds())))
		http.Error(w, "Too many wrong tokens have come from there.", http.StatusTooManyRequests)
		return
	case shown && matches(token, g.Token()):
		g.next.ServeHTTP(w, r)
		return
	case shown && g.guesses.wrong(client, time.Now()):
		g.log.Warn("status page: too many wrong tokens", "client", client.String(), "refused_for", guessTime.String())
	}
	if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
		g.next.ServeHTTP(bodyless{w}, r)
		return
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="gatehouse", charset="UTF-8"`)
	http.Error(w, "The token is wanted, as the password (with any user name) or as a bearer token.", http.StatusUnauthorized)
}

// bodyless answers with a status alone.
type bodyless struct{ http.ResponseWriter }

func (b bodyless) Write(p []byte) (int, error) { return len(p), nil }

// tokenOf is what a request shows, as RFC 6750 or RFC 7617 has it.
func tokenOf(r *http.Request) (token string, shown bool) {
	if _, password, ok := r.BasicAuth(); ok {
		return password, true
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return token, ok && strings.EqualFold(scheme, "Bearer")
}

// matches takes the same time whatever is shown, however long it is.
func matches(shown, token string) bool {
	a, b := sha256.Sum256([]byte(shown)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && token != ""
}

// clientOf is who is counted: an address, or the /64 of an IPv6 one.
func clientOf(remote string) netip.Addr {
	ap, _ := netip.ParseAddrPort(remote)
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		p, _ := addr.Prefix(64)
		return p.Addr()
	}
	return addr
}
