package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"e13.dev/gatehouse/lab/internal/workload"
)

const patience = 5 * time.Second

// overTCP asks over a new connection which pod is there, and whom it takes for the client.
func overTCP(from, to string, _ int) (pod, client string, err error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	conn, err := dialer.Dial("tcp", to)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", to); err != nil {
		return "", "", err
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		return "", "", err
	}
	var a workload.Answer
	_, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	if err := json.Unmarshal(body, &a); err != nil {
		return "", "", fmt.Errorf("%q: %w", text, err)
	}
	return a.Pod, a.Client, nil
}

// overUDP does so over a new flow. Its port is one that it has not used: conntrack would take two of the same port for
// one flow, which goes where it went before.
func overUDP(from, to string, number int) (pod, client string, err error) {
	const first = 20000
	dialer := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from), Port: first + number}}
	conn, err := dialer.Dial("udp", to)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", "", err
	}
	if _, err := io.WriteString(conn, workload.Whence); err != nil {
		return "", "", err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		return "", "", err
	}
	pod, client, ok := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	if !ok {
		return "", "", errors.New("an answer without the client in it")
	}
	return pod, client, nil
}
