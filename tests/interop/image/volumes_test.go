package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority issues the certificates of a mesh, as the chart's `tls.auto.method=helm` does.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Cilium CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns the keys of a Secret: tls.crt, tls.key and ca.crt.
func (a *authority) issue(t *testing.T, name string) map[string][]byte {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost", "*.mesh.cilium.io"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"ca.crt":  a.pem,
		"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
}

// client is the TLS configuration of a client with the files of a Secret.
func client(t *testing.T, secret map[string][]byte) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(secret["tls.crt"], secret["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(secret["ca.crt"])
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
}

// volume lays files out as kubelet does for Secrets and ConfigMaps with fsGroup: a directory with a time stamp, a link to
// it, and a link to each file. With the chart's mode of 0400, fsGroup makes files readable for the group only.
func volume(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := open(t.TempDir(), t)
	stamp := "..2026_11_27_12_00_00.1234567890"
	check(t, os.Mkdir(filepath.Join(dir, stamp), 0o755))
	check(t, os.Symlink(stamp, filepath.Join(dir, "..data")))
	for name, bytes := range files {
		path := filepath.Join(dir, stamp, name)
		check(t, os.WriteFile(path, bytes, 0o440))
		check(t, os.Chown(path, 0, nonroot))
		check(t, os.Chmod(path, 0o440))
		check(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	return dir
}

// emptyDir is a volume that the pod's group may write to.
func emptyDir(t *testing.T) string {
	t.Helper()
	dir := open(t.TempDir(), t)
	check(t, os.Chown(dir, 0, nonroot))
	check(t, os.Chmod(dir, os.ModeSetgid|0o777))
	return dir
}

// open makes a directory of the test, and the one above, passable for the container's user.
func open(dir string, t *testing.T) string {
	check(t, os.Chmod(filepath.Dir(dir), 0o755))
	check(t, os.Chmod(dir, 0o755))
	return dir
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
