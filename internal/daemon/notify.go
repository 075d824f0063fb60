package daemon

import (
	"log/slog"
	"net"
	"strings"
)

// manager is the service manager that has started us, if it is one that wants
// to know how things stand (systemd with Type=notify). The zero manager wants
// nothing.
type manager struct {
	socket string // $NOTIFY_SOCKET; one that begins with @ has no file
	log    *slog.Logger
}

// tell sends one message of lines like READY=1; sd_notify(3) lists them.
func (m manager) tell(lines ...string) {
	if m.socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(lines, "\n")))
		_ = conn.Close()
	}
	if err != nil {
		m.log.Warn("the service manager was not told", "message", lines, "err", err)
	}
}
