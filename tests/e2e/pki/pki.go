// Package pki makes certificates, as kubeadm, Cilium's certgen and cert-manager would.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// CA signs certificates.
type CA struct {
	PEM, KeyPEM []byte
	cert        *x509.Certificate
	key         crypto.Signer
}

// Pair is a certificate with its key.
type Pair struct{ Cert, Key []byte }

// Request says what a certificate is for. Hosts are names and addresses.
type Request struct {
	CommonName    string
	Organizations []string
	Hosts         []string
	Server        bool
	Client        bool
	Valid         time.Duration // a year if zero
}

// NewCA makes an authority; kind is "rsa", as Helm makes keys, or "ecdsa", as certgen does.
func NewCA(name, kind string) *CA {
	key := newKey(kind)
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().AddDate(3, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	return &CA{PEM: encode("CERTIFICATE", der), KeyPEM: encodeKey(key), cert: cert, key: key}
}

// Issue makes a certificate with a key of the authority's kind.
func (ca *CA) Issue(r Request) Pair {
	kind := "ecdsa"
	if _, ok := ca.key.(*rsa.PrivateKey); ok {
		kind = "rsa"
	}
	key := newKey(kind)
	valid := r.Valid
	if valid == 0 {
		valid = 365 * 24 * time.Hour
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: r.CommonName, Organization: r.Organizations},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(valid),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, host := range r.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	must(err)
	return Pair{Cert: encode("CERTIFICATE", der), Key: encodeKey(key)}
}

// Write writes NAME.crt and NAME.key.
func (p Pair) Write(dir, name string) error {
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), p.Cert, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".key"), p.Key, 0o600)
}

func newKey(kind string) crypto.Signer {
	if kind == "rsa" {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		must(err)
		return key
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return key
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(err)
	return n
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key crypto.Signer) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	return encode("PRIVATE KEY", der)
}

// must is for failures of the system's random source and of templates that are constant here.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
