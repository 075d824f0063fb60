package installtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain is also what runs inside of the box: backends, clients, and an API
// server that knows one Service.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "help" {
		if err := help(os.Args[2], os.Args[3:]...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func help(what string, args ...string) error {
	switch what {
	case "echo": // ADDRESS: says who connected, then what it is sent, a line each; a datagram gets itself back
		go func() { panic(echoUDP(args[0])) }()
		return echo(args[0])
	case "ask": // ADDRESS...: what echo says, within a second, or why not
		for _, address := range args {
			fmt.Println(address, askEcho(address))
		}
		return nil
	case "askudp":
		fmt.Println(args[0], askUDP(args[0]))
		return nil
	case "hold": // ADDRESS SECONDS: asks each 50 ms on one connection, and makes a new one each time too
		return hold(args[0], args[1])
	case "api":
		return http.ListenAndServe(args[0], http.HandlerFunc(serveAPI))
	}
	return fmt.Errorf("help with %s?", what)
}

func echo(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			fmt.Fprintln(conn, host)
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func echoUDP(address string) error {
	l, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	b := make([]byte, 2048)
	for {
		n, from, err := l.ReadFrom(b)
		if err != nil {
			return err
		}
		_, _ = l.WriteTo(b[:n], from)
	}
}

func askEcho(address string) string {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return why(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	var line string
	if _, err := fmt.Fscanln(conn, &line); err != nil {
		return why(err)
	}
	return line
}

func why(err error) string {
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
		return "timeout"
	}
	return strings.ReplaceAll(err.Error()[strings.LastIndex(err.Error(), ": ")+2:], " ", "-")
}

func askUDP(address string) string {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return why(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte("hello"))
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if err != nil {
		return why(err)
	}
	return string(b[:n])
}

// hold has one connection for as long as it is told, and says how many new ones
// beside it were refused or cut.
func hold(address, seconds string) error {
	d, err := time.ParseDuration(seconds + "s")
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	var line string
	if _, err := fmt.Fscanln(conn, &line); err != nil {
		return err
	}
	made, failed := 0, 0
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := fmt.Fprintln(conn, "x"); err != nil {
			return fmt.Errorf("the connection was cut: %w", err)
		}
		if _, err := fmt.Fscanln(conn, &line); err != nil {
			return fmt.Errorf("the connection was cut: %w", err)
		}
		made++
		if net.ParseIP(askEcho(address)) == nil {
			failed++
		}
	}
	fmt.Printf("held, %d made, %d failed\n", made, failed)
	return nil
}

const (
	pooledAddress = "10.9.1.200"
	theService    = `{"metadata": {"name": "web", "namespace": "shop", "uid": "1", "resourceVersion": "2", "creationTimestamp": "2026-01-01T00:00:00Z",
		"annotations": {"gatehouse.e13.dev/zones": "home", "gatehouse.e13.dev/target": "pod"}},
		"spec": {"type": "LoadBalancer", "loadBalancerClass": "gatehouse.e13.dev/edge", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
		"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
		"ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]}, "status": {"loadBalancer": {}}}`
	theSlice = `{"metadata": {"name": "web-1", "namespace": "shop", "uid": "2", "resourceVersion": "2", "labels": {"kubernetes.io/service-name": "web"}},
		"addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
		"endpoints": [{"addresses": ["10.9.2.2"], "nodeName": "w1", "conditions": {"ready": true, "serving": true, "terminating": false}}]}`
	theNode = `{"metadata": {"name": "w1", "uid": "3", "resourceVersion": "2"}, "spec": {},
		"status": {"addresses": [{"type": "InternalIP", "address": "10.9.2.2"}], "conditions": [{"type": "Ready", "status": "True"}]}}`
	theNamespace = `{"metadata": {"name": "shop", "uid": "4", "resourceVersion": "2"}}`
)

// serveAPI is an API server in which nothing happens: enough to be read.
func serveAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	kinds := map[string][3]string{
		"/api/v1/services":                         {"v1", "ServiceList", theService},
		"/api/v1/nodes":                            {"v1", "NodeList", theNode},
		"/api/v1/namespaces":                       {"v1", "NamespaceList", theNamespace},
		"/apis/discovery.k8s.io/v1/endpointslices": {"discovery.k8s.io/v1", "EndpointSliceList", theSlice},
	}
	kind, ok := kinds[r.URL.Path]
	switch {
	case r.Method != http.MethodGet: // statuses and Events, which nobody reads
		body, _ := io.ReadAll(r.Body)
		if strings.HasSuffix(r.URL.Path, "/events") {
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(body)
			return
		}
		var s map[string]any
		_ = json.Unmarshal([]byte(theService), &s)
		s["apiVersion"], s["kind"] = "v1", "Service"
		_ = json.NewEncoder(w).Encode(s)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`)
	case r.URL.Query().Has("sendInitialEvents"):
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}`)
	case r.URL.Query().Get("watch") != "":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		fmt.Fprintf(w, `{"apiVersion": %q, "kind": %q, "metadata": {"resourceVersion": "2"}, "items": [%s]}`, kind[0], kind[1], kind[2])
	}
}
