package mesh

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"

	"isthmus.dev/e2e/kube"
)

// followed is the newest certificate and the newest authorities of a Secret.
type followed struct {
	cluster *kube.Cluster
	secret  string

	mu     sync.Mutex
	config *tls.Config
	read   time.Time
}

// FollowTLS is like TLS, but each handshake uses what the Secret has then, as agents use what their files have.
func FollowTLS(cluster *kube.Cluster, secret string) (*tls.Config, error) {
	f := &followed{cluster: cluster, secret: secret}
	config, err := TLS(cluster, secret)
	if err != nil {
		return nil, err
	}
	f.config, f.read = config, time.Now()
	return &tls.Config{
		ServerName: config.ServerName, MinVersion: config.MinVersion,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &f.newest().Certificates[0], nil },
		// The authorities of a tls.Config cannot change: the same verification is done below, with the newest ones.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, one := range state.PeerCertificates[1:] {
				between.AddCert(one)
			}
			options := x509.VerifyOptions{Roots: f.newest().RootCAs, Intermediates: between, DNSName: config.ServerName}
			_, err := state.PeerCertificates[0].Verify(options)
			return err
		},
	}, nil
}

// newest reads the Secret again after some seconds: hundreds of clients may ask at once. What was read stays in use where the
// API does not answer.
func (f *followed) newest() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.read) > 3*time.Second {
		if config, err := TLS(f.cluster, f.secret); err == nil {
			f.config = config
		}
		f.read = time.Now()
	}
	return f.config
}
