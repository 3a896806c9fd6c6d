package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/e2e/kube"
)

// Users of a store, by the Secret of their certificate.
const (
	AdminUser  = "clustermesh-apiserver-admin-cert"
	RemoteUser = "clustermesh-apiserver-remote-cert"
	LocalUser  = "clustermesh-apiserver-local-cert"
)

// TLS makes the configuration of a client with the certificate of a Secret.
func TLS(cluster *kube.Cluster, secret string) (*tls.Config, error) {
	out, err := cluster.Try("get", "secret", "-n", Namespace, secret, "-o", "json")
	if err != nil {
		return nil, err
	}
	var answer struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, err
	}
	config, err := TLSOf(cluster.Name, answer.Data)
	if err != nil {
		err = fmt.Errorf("secret %s: %w", secret, err)
	}
	return config, err
}

// TLSOf makes the configuration of a client of a cluster's store from the data of a Secret.
func TLSOf(cluster string, data map[string]string) (*tls.Config, error) {
	pem := func(key string) []byte {
		decoded, _ := base64.StdEncoding.DecodeString(data[key])
		return decoded
	}
	pair, err := tls.X509KeyPair(pem("tls.crt"), pem("tls.key"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem("ca.crt")) {
		return nil, errors.New("no ca.crt")
	}
	name := cluster + ".mesh.cilium.io"
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12}, nil
}

// Client connects to a cluster's store through the NodePort with the certificate of a Secret.
func Client(cluster *kube.Cluster, secret string) (*clientv3.Client, error) {
	return ClientAt(cluster, secret, cluster.Nodes[0].Address+":32379")
}

// ClientOf connects to a cluster's store with a certificate of another cluster, as that cluster's mirror does. The authority of the
// store may be another one than that of the certificate.
func ClientOf(cluster, owner *kube.Cluster, secret string) (*clientv3.Client, error) {
	config, err := TLS(owner, secret)
	if err != nil {
		return nil, err
	}
	server, err := TLS(cluster, secret)
	if err != nil {
		return nil, err
	}
	config.ServerName, config.RootCAs = server.ServerName, server.RootCAs
	return Dial(cluster.Nodes[0].Address+":32379", config)
}

// ClientAt connects to a store at an address.
func ClientAt(cluster *kube.Cluster, secret, address string) (*clientv3.Client, error) {
	config, err := TLS(cluster, secret)
	if err != nil {
		return nil, err
	}
	return Dial(address, config)
}

// isProbe tells the probe of Isthmus' propagation, which is rewritten every second, and which nobody mirrors.
func isProbe(key string) bool { return strings.HasPrefix(key, "cilium/state/probe/") }

// Keys reads the keys of a prefix, without the probe.
func Keys(client *clientv3.Client, prefix string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second*slack())
	defer cancel()
	answer, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	keys := map[string]string{}
	for _, kv := range answer.Kvs {
		if key := string(kv.Key); !isProbe(key) {
			keys[key] = string(kv.Value)
		}
	}
	return keys, nil
}

// mirrored is the key under which another cluster's mirror has a key of this cluster.
func mirrored(key, cluster string) string {
	for prefix, target := range map[string]string{
		"cilium/state/ip/v1/default/":     "cilium/cache/ip/v1/" + cluster + "/",
		"cilium/state/identities/v1/":     "cilium/cache/identities/v1/" + cluster + "/",
		"cilium/state/nodes/v1/":          "cilium/cache/nodes/v1/",
		"cilium/state/services/v1/":       "cilium/cache/services/v1/",
		"cilium/state/serviceexports/v1/": "cilium/cache/serviceexports/v1/",
		"cilium/state/endpointslices/v1/": "cilium/cache/endpointslices/v1/",
	} {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			return target + rest
		}
	}
	return ""
}

// Stores are clients of two stores: what a cluster publishes, and what another cluster has mirrored.
type Stores struct {
	From, To *clientv3.Client
	source   string
}

// Open connects to the store of a cluster and to that of a cluster that mirrors it, with the certificates of the chart.
func Open(source, target *kube.Cluster) (*Stores, error) {
	from, err := ClientOf(source, target, RemoteUser)
	if err != nil {
		return nil, err
	}
	to, err := Client(target, LocalUser)
	if err != nil {
		from.Close()
		return nil, err
	}
	return &Stores{From: from, To: to, source: source.Name}, nil
}

// Close ends the connections.
func (s *Stores) Close() {
	s.From.Close()
	s.To.Close()
}

// Equal compares the keys, and returns their number.
func (s *Stores) Equal() (int, error) { return Compare(s.From, s.source, s.To) }

// Mirrors compares the keys of two clusters over new connections.
func Mirrors(source, target *kube.Cluster) (int, error) {
	stores, err := Open(source, target)
	if err != nil {
		return 0, err
	}
	defer stores.Close()
	return stores.Equal()
}

// Compare compares the published keys of the cluster with a name with their mirror, and returns their number.
func Compare(from *clientv3.Client, name string, to *clientv3.Client) (int, error) {
	published, err := Keys(from, "cilium/state/")
	if err != nil {
		return 0, err
	}
	cached, err := Keys(to, "cilium/cache/")
	if err != nil {
		return 0, err
	}
	equal := 0
	for key, value := range published {
		target := mirrored(key, name)
		got, ok := cached[target]
		if !ok {
			return equal, fmt.Errorf("%s is missing", target)
		}
		if got != value {
			return equal, fmt.Errorf("%s is %s, want %s", target, got, value)
		}
		equal++
	}
	for key := range cached {
		if parts := strings.Split(key, "/"); len(parts) > 4 && parts[4] == name {
			equal--
		}
	}
	if equal != 0 {
		return 0, fmt.Errorf("the mirror of %s has %d keys too many", name, -equal)
	}
	return len(published), nil
}

// Serial is the serial number of the certificate that a new connection to a store gets.
func Serial(cluster *kube.Cluster, address string) (string, error) {
	config, err := TLS(cluster, RemoteUser)
	if err != nil {
		return "", err
	}
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}
