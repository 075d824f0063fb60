// Package workload owns the programs that run in the lab's pods: web answers HTTP and echo answers TCP and UDP, both
// with the name of the pod, so that a client sees which one it got. The agent decides when and where they run.
package workload

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// Answer is what web says to every GET.
type Answer struct {
	Pod    string `json:"pod"`
	Node   string `json:"node"`
	Client string `json:"client"` // address and port that the connection came from
	Local  string `json:"local"`  // and that it came to
}

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
		server := &http.Server{Handler: http.HandlerFunc(web), ReadHeaderTimeout: 30 * time.Second}
		go func() { failed <- server.Serve(listener) }()
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

func web(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Answer{
		Pod: os.Getenv("LAB_POD"), Node: os.Getenv("LAB_NODE"), Client: r.RemoteAddr, Local: local.String(),
	})
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
		_, from, err := packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error about an earlier answer, reported here
		}
		_, _ = packets.WriteTo([]byte(os.Getenv("LAB_POD")+"\n"), from)
	}
}
