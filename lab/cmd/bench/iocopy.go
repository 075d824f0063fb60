package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"e13.dev/gatehouse/lab/internal/bench/load"
)

// runIOCopy is what one writes in Go without thinking about it: two goroutines for a connection, io.Copy in each; for
// UDP, a socket and a goroutine for each client.
func runIOCopy(port, list string) error {
	backends := strings.Split(list, ",")
	if port == portText(load.UDPPort) {
		return relayDatagrams(port, backends)
	}
	l, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		return err
	}
	var turn atomic.Uint64
	for {
		client, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			backend, err := net.Dial("tcp4", backends[turn.Add(1)%uint64(len(backends))])
			if err != nil {
				return
			}
			defer backend.Close()
			var both sync.WaitGroup
			both.Go(func() { oneWay(backend.(*net.TCPConn), client.(*net.TCPConn)) })
			oneWay(client.(*net.TCPConn), backend.(*net.TCPConn))
			both.Wait()
		}()
	}
}

func oneWay(to, from *net.TCPConn) {
	_, _ = io.Copy(to, from) // an error ends this way as an end does
	_ = to.CloseWrite()
}

func relayDatagrams(port string, backends []string) error {
	addr, err := netip.ParseAddrPort("0.0.0.0:" + port)
	if err != nil {
		return err
	}
	// One socket for each address: an answer has to come from the address that was asked.
	errs := make(chan error)
	for _, a := range edgeAddrs {
		go func() { errs <- relayAt(netip.AddrPortFrom(a, addr.Port()), backends) }()
	}
	return <-errs
}

func relayAt(at netip.AddrPort, backends []string) error {
	front, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	_ = front.SetReadBuffer(4 << 20) // the kernel caps it; what it gives is what there is
	sessions := map[netip.AddrPort]*net.UDPConn{}
	buf := make([]byte, 64<<10)
	for {
		n, client, err := front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		back, ok := sessions[client]
		if !ok {
			to, err := netip.ParseAddrPort(backends[len(sessions)%len(backends)])
			if err != nil {
				return err
			}
			if back, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to)); err != nil {
				return err
			}
			sessions[client] = back
			go answers(front, back, client)
		}
		if _, err := back.Write(buf[:n]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			continue // a datagram that cannot be sent is lost, as they are
		}
	}
}

func answers(front, back *net.UDPConn, client netip.AddrPort) {
	buf := make([]byte, 64<<10)
	for {
		n, err := back.Read(buf)
		if err != nil {
			return
		}
		if _, err := front.WriteToUDPAddrPort(buf[:n], client); err != nil {
			return
		}
	}
}
