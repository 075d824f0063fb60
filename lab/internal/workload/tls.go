package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"time"

	"github.com/quic-go/quic-go"
)

// Protocol is what clients of tls name over QUIC (ALPN). Each stream of theirs is a question of any text, answered with
// an Answer in JSON. Its Client is where the connection is now: clients of QUIC may move.
const Protocol = "lab"

// selfSigned is a certificate for nobody: clients that want to know who answers look at the Answer.
func selfSigned() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"http/1.1"},
		MinVersion:   tls.VersionTLS12,
	}, nil
}

func serveQUIC(packets net.PacketConn, config *tls.Config) error {
	config = config.Clone()
	config.NextProtos = []string{Protocol}
	listener, err := quic.Listen(packets, config, &quic.Config{MaxIdleTimeout: time.Minute})
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept(context.Background())
		if err != nil {
			return err
		}
		go answerQUIC(conn)
	}
}

func answerQUIC(conn *quic.Conn) {
	for {
		stream, err := conn.AcceptStream(conn.Context())
		if err != nil {
			return
		}
		go func() {
			defer stream.Close()
			if _, err := io.Copy(io.Discard, stream); err != nil {
				return
			}
			a := answer(conn.RemoteAddr().String(), conn.LocalAddr())
			a.ServerName = conn.ConnectionState().TLS.ServerName
			_ = json.NewEncoder(stream).Encode(a)
		}()
	}
}
