package site

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority signs the certificates of one lab. Its key lives as long as the lab.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certTemplate(pkix.Name{CommonName: "gatehouse-lab"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

func certTemplate(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail on Linux
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

// issue signs a certificate: for a server if it has names or addresses, else for a client.
func (a *authority) issue(subject pkix.Name, dnsNames []string, ips []net.IP) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := certTemplate(subject)
	template.DNSNames, template.IPAddresses = dnsNames, ips
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(dnsNames)+len(ips) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, err
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// identities are the clients that get a kubeconfig by certificate: file name, user, group.
func identities() [][3]string {
	ids := [][3]string{
		{"admin", "lab-admin", "system:masters"},
		{"kube-controller-manager", "system:kube-controller-manager", ""},
		{"kube-scheduler", "system:kube-scheduler", ""},
		{"kube-proxy", "system:kube-proxy", ""},
		// As its ServiceAccount, whose tokens there are only once there is an API server.
		{"gatehouse", "system:serviceaccount:gatehouse:gatehouse", "system:serviceaccounts"},
	}
	for _, n := range nodes() {
		ids = append(ids, [3]string{"agent-" + n, "system:node:" + n, "system:nodes"})
	}
	return ids
}

// writeKeys makes all keys, certificates and kubeconfigs that the components start with.
func (s *Site) writeKeys() error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("pki", "ca.crt"), ca.pem, 0o644); err != nil {
		return err
	}
	names := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
	}
	ips := []net.IP{
		net.ParseIP(ControlPlane), net.ParseIP("10.96.0.1"), net.ParseIP("127.0.0.1"), net.ParseIP("fd00:10::10"),
		// gatehouse may open the API server in the home LAN; kubectl there verifies the address that it dialed.
		net.ParseIP(EdgeHome), net.ParseIP(EdgeCluster),
	}
	cert, key, err := ca.issue(pkix.Name{CommonName: "kube-apiserver"}, names, ips)
	if err != nil {
		return err
	}
	if err := s.writePair("apiserver", cert, key); err != nil {
		return err
	}
	cert, key, err = ca.issue(pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}, nil, nil)
	if err != nil {
		return err
	}
	if err := s.writePair("kubelet-client", cert, key); err != nil {
		return err
	}
	for _, n := range nodes() {
		addr := net.ParseIP(ControlPlane)
		if n != "cp" {
			addr = net.ParseIP(workerAddr(workerNumber(n)))
		}
		if cert, key, err = ca.issue(pkix.Name{CommonName: "system:node:" + n}, []string{n}, []net.IP{addr}); err != nil {
			return err
		}
		if err := s.writePair("kubelet-"+n, cert, key); err != nil {
			return err
		}
	}
	tokens, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if key, err = encodeKey(tokens); err != nil {
		return err
	}
	if err := os.WriteFile(s.path("pki", "tokens.key"), key, 0o600); err != nil {
		return err
	}
	for _, id := range identities() {
		subject := pkix.Name{CommonName: id[1]}
		if id[2] != "" {
			subject.Organization = []string{id[2]}
		}
		cert, key, err := ca.issue(subject, nil, nil)
		if err != nil {
			return err
		}
		user := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
		if err := writeKubeconfig(s.path("kubeconfig", id[0]), ca.pem, id[1], user); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) writePair(name string, cert, key []byte) error {
	if err := os.WriteFile(s.path("pki", name+".crt"), cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(s.path("pki", name+".key"), key, 0o600)
}

func writeKubeconfig(path string, caPEM []byte, userName string, user *clientcmdapi.AuthInfo) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{Server: "https://" + APIServer, CertificateAuthorityData: caPEM}
	config.AuthInfos[userName] = user
	config.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: userName}
	config.CurrentContext = "lab"
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("kubeconfig of %s: %w", userName, err)
	}
	return writeFile(path, data, 0o600)
}
