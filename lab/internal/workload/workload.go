// Package workload owns the programs that run in the lab's pods: web answers HTTP, tls does so over TLS and answers
// QUIC, and echo answers TCP and UDP, all with the name of the pod, so that a client sees which one it got. The agent
// decides when and where they run.
package workload

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// Answer is what web and tls say to every request.
type Answer struct {
	Pod    string `json:"pod"`
	Node   string `json:"node"`
	Client string `json:"client"` // address and port that the connection came from
	Local  string `json:"local"`  // and that it came to
	// ServerName is whom a client of tls has asked for in its hello.
	ServerName string `json:"serverName,omitempty"`
}

// Whence is what echo is asked over UDP to say, after its name, where the question came from.
const Whence = "whence?"

// Main runs one of the programs until SIGTERM and a while longer. Who the pod is comes from the environment:
// LAB_POD and LAB_NODE.
func Main(program string, args []string) error {
	flags := flag.NewFlagSet("lab/"+program, flag.ContinueOnError)
	port := flags.Int("port", 8080, "port to listen on")
	linger := flags.Duration("linger", 3*time.Second, "how long to go on serving after SIGTERM, as a graceful server does")
	if v := os.Getenv("LINGER"); v != "" {
		if err := flags.Set("linger", v); err != nil {
			return err
		}
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	address := net.JoinHostPort("", strconv.Itoa(*port))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	switch program {
	case "web":
		go func() { failed <- webServer().Serve(listener) }()
	case "tls":
		config, err := selfSigned()
		if err != nil {
			return err
		}
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		server := webServer()
		server.TLSConfig = config
		go func() { failed <- server.ServeTLS(listener, "", "") }()
		go func() { failed <- serveQUIC(packets, config) }()
	case "echo":
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		go func() { failed <- echoTCP(listener) }()
		go func() { failed <- echoUDP(packets) }()
	default:
		return fmt.Errorf("no program named %q", program)
	}
	fmt.Printf("%s: serving on port %d\n", os.Getenv("LAB_POD"), *port)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	fmt.Printf("%s: told to end, serving for %s more\n", os.Getenv("LAB_POD"), *linger)
	select {
	case err := <-failed:
		return err
	case <-time.After(*linger):
		return nil
	}
}

func webServer() *http.Server {
	// Hellos that are no TLS, and clients that go, are what the tests do; their log would be the pod's.
	return &http.Server{Handler: http.HandlerFunc(web), ReadHeaderTimeout: 30 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
}

func web(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	a := answer(r.RemoteAddr, local)
	if r.TLS != nil {
		a.ServerName = r.TLS.ServerName
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a)
}

func answer(client string, local net.Addr) Answer {
	return Answer{Pod: os.Getenv("LAB_POD"), Node: os.Getenv("LAB_NODE"), Client: client, Local: local.String()}
}

func echoTCP(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if _, err := fmt.Fprintln(conn, os.Getenv("LAB_POD")); err != nil {
				return
			}
			// Returns at the client's end of stream; everything it sent has then been sent back.
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func echoUDP(packets net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error about an earlier answer, reported here
		}
		reply := os.Getenv("LAB_POD")
		if string(buf[:n]) == Whence {
			reply += " " + from.String()
		}
		_, _ = packets.WriteTo([]byte(reply+"\n"), from)
	}
}
