package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// serveLogs is what of a kubelet's API the lab has: kubectl logs and kubectl exec.
func (a *Agent) serveLogs(ctx context.Context) {
	pki := filepath.Join(a.cfg.Dir, "pki")
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		a.log.Error("log server", "error", err)
		return
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(ca)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.containerLogs)
	mux.HandleFunc("GET /exec/{namespace}/{pod}/{container}", a.exec)
	mux.HandleFunc("POST /exec/{namespace}/{pod}/{container}", a.exec)
	server := &http.Server{
		Addr:              net.JoinHostPort(a.cfg.Address.String(), strconv.Itoa(kubeletPort)),
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12},
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	pair := filepath.Join(pki, "kubelet-"+a.cfg.Node)
	if err := server.ListenAndServeTLS(pair+".crt", pair+".key"); ctx.Err() == nil {
		a.log.Error("log server", "error", err)
	}
}

func (a *Agent) containerLogs(w http.ResponseWriter, r *http.Request) {
	uid := a.uidOf(r.PathValue("namespace"), r.PathValue("pod"))
	if uid == "" {
		http.Error(w, "no such pod on this node", http.StatusNotFound)
		return
	}
	file, err := os.Open(filepath.Join(a.podsDir(), string(uid), filepath.Base(r.PathValue("container"))+".log"))
	if err != nil {
		http.Error(w, "the container has printed nothing yet", http.StatusNotFound)
		return
	}
	defer file.Close()
	data, err := io.ReadAll(file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if n, err := strconv.Atoi(r.FormValue("tailLines")); err == nil {
		data = lastLines(data, n)
	}
	_, _ = w.Write(data)
	if r.FormValue("follow") != "true" {
		return
	}
	flush := http.NewResponseController(w)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := io.Copy(w, file); err != nil || n > 0 && flush.Flush() != nil {
			return
		}
		a.mu.Lock()
		here := a.pods[uid] != nil
		a.mu.Unlock()
		if !here {
			return
		}
		_ = flush.Flush()
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// uidOf is empty when no such pod is on this node.
func (a *Agent) uidOf(namespace, name string) types.UID {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, p := range a.pods {
		if p.rec.Namespace == namespace && p.rec.Name == name {
			return id
		}
	}
	return ""
}

func lastLines(data []byte, n int) []byte {
	lines := bytes.SplitAfter(data, []byte("\n"))
	if len(lines) > 0 && len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	return bytes.Join(lines[max(0, len(lines)-max(0, n)):], nil)
}
