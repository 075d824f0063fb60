package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const clusterDomain = "cluster.local"

// resolvConf is the pod's /etc/resolv.conf: its node's end of the cable answers, see serveDNS.
func (a *Agent) resolvConf(namespace string) string {
	return fmt.Sprintf("nameserver %[3]s\nsearch %[1]s.svc.%[2]s svc.%[2]s %[2]s\noptions ndots:5\n",
		namespace, clusterDomain, a.cfg.PodCIDR.Masked().Addr().Next())
}

// serveDNS answers pods with the cluster addresses of Services, SERVICE.NAMESPACE.svc.cluster.local, and knows no other
// names. It asks the API server each time: what it says is never old.
func (a *Agent) serveDNS(ctx context.Context) {
	packets, err := net.ListenPacket("udp", ":53")
	if err != nil {
		a.log.Error("name server", "error", err)
		return
	}
	context.AfterFunc(ctx, func() { _ = packets.Close() })
	buf := make([]byte, 1500)
	for {
		n, from, err := packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		question := append([]byte(nil), buf[:n]...)
		go func() {
			if reply := answerDNS(question, func(name string) ([]netip.Addr, error) { return a.addressesOf(ctx, name) }); reply != nil {
				_, _ = packets.WriteTo(reply, from)
			}
		}()
	}
}

var errNoSuchName = errors.New("no such name")

func (a *Agent) addressesOf(ctx context.Context, name string) ([]netip.Addr, error) {
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(name, ".")), ".")
	if len(labels) != 5 || strings.Join(labels[2:], ".") != "svc."+clusterDomain {
		return nil, errNoSuchName
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	service, err := a.client.CoreV1().Services(labels[1]).Get(ctx, labels[0], metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, errNoSuchName
	}
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, ip := range service.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil { // "None"
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}

// answerDNS returns the reply to a message with one question, nil to what is none.
func answerDNS(message []byte, lookup func(name string) ([]netip.Addr, error)) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil || header.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	addrs, err := lookup(q.Name.String())
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	switch {
	case errors.Is(err, errNoSuchName):
		reply.RCode = dnsmessage.RCodeNameError
	case err != nil:
		reply.RCode = dnsmessage.RCodeServerFailure
	}
	for _, addr := range addrs {
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	packed, err := reply.Pack()
	if err != nil {
		return nil
	}
	return packed
}
