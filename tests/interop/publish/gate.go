package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"isthmus.dev/interop/peer"
)

// gate is a proxy before an API server. It forwards connections, refuses them, or accepts them and never answers.
type gate struct {
	address string
	server  *http.Server

	mu       sync.Mutex
	listener net.Listener
	conns    map[*gated]struct{}
	open     chan struct{} // closed while data flows
}

// serve starts the API of a side, and returns the path of a kubeconfig for it.
func serve(handler http.Handler, dir string, plain bool) (*gate, string, error) {
	g := &gate{address: peer.FreePort(), conns: map[*gated]struct{}{}, open: make(chan struct{})}
	close(g.open)
	g.server = &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	cluster := "server: http://" + g.address
	if !plain {
		ca, pair, err := certificate()
		if err != nil {
			return nil, "", err
		}
		file := filepath.Join(dir, "ca.crt")
		if err := os.WriteFile(file, ca, 0o600); err != nil {
			return nil, "", err
		}
		g.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
		cluster = fmt.Sprintf("server: https://%s\n    certificate-authority: %s", g.address, file)
	}
	config := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: c
clusters:
- name: c
  cluster:
    %s
users:
- name: u
  user:
    token: sesame
contexts:
- name: c
  context: {cluster: c, user: u}
`, cluster)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	return g, config, g.listen()
}

func (g *gate) listen() error {
	l, err := net.Listen("tcp", g.address)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.listener = l
	g.mu.Unlock()
	go func() {
		through := accepting{l, g}
		if g.server.TLSConfig != nil {
			_ = g.server.ServeTLS(through, "", "")
		} else {
			_ = g.server.Serve(through)
		}
	}()
	return nil
}

// refuse closes all connections and accepts no new ones.
func (g *gate) refuse() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listener.Close()
	for c := range g.conns {
		c.Conn.Close()
	}
}

// hang keeps all connections and accepts new ones, but forwards no data.
func (g *gate) hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

// heal forwards data again after hang.
func (g *gate) heal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
}

// lose forwards data again after hang, but only for new connections: the old ones stay silent.
func (g *gate) lose() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.lost.Store(true)
	}
	close(g.open)
}

// close frees lost connections first, because TLS sends a closing message on them.
func (g *gate) close() {
	g.mu.Lock()
	for c := range g.conns {
		c.once.Do(func() { close(c.closed) })
		c.Conn.Close()
	}
	g.mu.Unlock()
	g.server.Close()
}

type accepting struct {
	net.Listener
	gate *gate
}

func (a accepting) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &gated{Conn: c, gate: a.gate, closed: make(chan struct{})}
	a.gate.mu.Lock()
	a.gate.conns[g] = struct{}{}
	a.gate.mu.Unlock()
	return g, nil
}

type gated struct {
	net.Conn
	gate   *gate
	lost   atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (c *gated) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.wait() {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *gated) Write(p []byte) (int, error) {
	if !c.wait() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// wait waits until data may flow, or until the connection is closed.
func (c *gated) wait() bool {
	c.gate.mu.Lock()
	open := c.gate.open
	c.gate.mu.Unlock()
	select {
	case <-open:
	case <-c.closed:
	}
	if c.lost.Load() {
		<-c.closed
		return false
	}
	return true
}

func (c *gated) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// certificate makes an authority, and a certificate with key for 127.0.0.1.
func certificate() (ca []byte, pair tls.Certificate, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, pair, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, pair, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	signed, err := x509.CreateCertificate(rand.Reader, root, root, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, pair, err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, caKey)
	if err != nil {
		return nil, pair, err
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
