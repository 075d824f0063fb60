package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"e13.dev/gatehouse/internal/edge"
)

// problemObject is the Object of problems that are not about one Service.
const problemObject = "kubernetes"

// explain turns what client-go says into what an operator can act on. The text
// is the same for each repetition (no local ports, no times), so that a problem
// appears and clears once.
func (s source) explain(doing string, err error) edge.Problem {
	server := s.server()
	p := edge.Problem{Object: problemObject}
	status, answered := answer(err)
	if !answered {
		p.What = fmt.Sprintf("the API server %s cannot be reached: %s", server, cause(err))
		p.Remedy = "check that it runs, and the server address in the " + s.name()
		if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			p.What = fmt.Sprintf("the API server %s is not trusted: %v", server, untrusted.Err)
			p.Remedy = "put its address and the certificate authority that signed its certificate into the " + s.name()
		}
		return p
	}
	switch {
	case apierrors.IsUnauthorized(err):
		p.What = fmt.Sprintf("the API server %s refuses the login (401 Unauthorized): the token or certificate has expired or was revoked", server)
		p.Remedy = "renew it in the " + s.name() + "; the file is read again by itself"
		if s.file == "" {
			p.Remedy = "check that the ServiceAccount of the Pod still exists"
		}
	case apierrors.IsForbidden(err):
		p.What = fmt.Sprintf("not allowed to %s (403 Forbidden): %s", doing, firstLine(status.Status().Message))
		p.Remedy = "have an administrator run gatehouse kubeconfig, and use the file that it writes"
		if s.file == "" {
			p.Remedy = "give the ServiceAccount of the Pod the ClusterRole that the Helm chart has for it"
		}
	default:
		p.What = fmt.Sprintf("cannot %s: the API server %s answers %d: %s", doing, server, status.Status().Code, firstLine(status.Status().Message))
		p.Remedy = "it is tried again; if it stays, look into the log of the API server"
	}
	return p
}

// answer is what the API server said, if it is the API server that said no.
func answer(err error) (apierrors.APIStatus, bool) {
	var status apierrors.APIStatus
	ok := errors.As(err, &status)
	return status, ok
}

// cause finds the words under client-go's, net/http's and net's wrapping.
func cause(err error) string {
	var errno syscall.Errno
	var name *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.EHOSTUNREACH):
		// On one network this and a timeout take turns: nobody answers ARP.
		return "no answer"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &name):
		return "no address found for " + name.Name
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return firstLine(err.Error())
		}
		err = inner
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
