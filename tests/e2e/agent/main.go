// Agent stands in for cilium-agent where only its view of the mesh matters: it reads the client files that the chart mounts into
// agents, connects to the stores that they name, and answers `cilium status -o json` in the fields that tools read. It has no
// datapath.
//
//	agent run              waits, as the container's main process
//	cilium status -o json  what the agent sees of each remote cluster
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"sigs.k8s.io/yaml"
)

const directory = "/var/lib/cilium/clustermesh"

// file is a client file of etcd with Cilium's extension.
type file struct {
	Endpoints []string `json:"endpoints"`
	CA        string   `json:"trusted-ca-file"`
	Key       string   `json:"key-file"`
	Cert      string   `json:"cert-file"`
	Aliases   []struct {
		Hostname string   `json:"hostname"`
		IPs      []string `json:"ips"`
	} `json:"cilium-host-aliases"`
}

type remote struct {
	Name       string          `json:"name"`
	Ready      bool            `json:"ready"`
	Connected  bool            `json:"connected"`
	Status     string          `json:"status"`
	Config     map[string]any  `json:"config,omitempty"`
	Synced     map[string]bool `json:"synced,omitempty"`
	Nodes      int             `json:"num-nodes"`
	Endpoints  int             `json:"num-endpoints"`
	Identities int             `json:"num-identities"`
	Services   int             `json:"num-shared-services"`
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "run" {
		for {
			time.Sleep(time.Hour)
		}
	}
	entries, err := os.ReadDir(directory)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	own := os.Getenv("CLUSTER_NAME")
	remotes := []remote{}
	for _, entry := range entries {
		path := filepath.Join(directory, entry.Name())
		content, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(content), "endpoints:") || entry.Name() == own {
			continue
		}
		remotes = append(remotes, look(entry.Name(), content))
	}
	answer := map[string]any{"cluster-mesh": map[string]any{"clusters": remotes, "num-global-services": services(remotes)}}
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}

func services(remotes []remote) int {
	n := 0
	for _, r := range remotes {
		n = max(n, r.Services)
	}
	return n
}

// look connects to the store of a client file and counts what the store has of a cluster.
func look(name string, content []byte) remote {
	r := remote{Name: name}
	client, err := connect(content)
	if err != nil {
		r.Status = err.Error()
		return r
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	config, err := client.Get(ctx, "cilium/cluster-config/"+name)
	if err != nil {
		r.Status = err.Error()
		return r
	}
	r.Connected = true
	r.Config = map[string]any{"required": true, "retrieved": len(config.Kvs) > 0}
	cached := len(config.Kvs) > 0 && strings.Contains(string(config.Kvs[0].Value), `"cached":true`)
	r.Config["kvstoremesh"] = cached
	if r.Synced, err = synced(ctx, client, name, cached); err != nil {
		r.Status = err.Error()
		return r
	}
	for prefix, count := range prefixes(name, cached, &r) {
		answer, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			r.Status = err.Error()
			return r
		}
		*count = int(answer.Count)
	}
	r.Ready = len(config.Kvs) > 0
	for _, done := range r.Synced {
		r.Ready = r.Ready && done
	}
	r.Status = "stand-in agent"
	return r
}

func prefixes(name string, cached bool, r *remote) map[string]*int {
	if cached {
		return map[string]*int{
			"cilium/cache/nodes/v1/" + name + "/": &r.Nodes, "cilium/cache/ip/v1/" + name + "/": &r.Endpoints,
			"cilium/cache/identities/v1/" + name + "/id/": &r.Identities, "cilium/cache/services/v1/" + name + "/": &r.Services,
		}
	}
	return map[string]*int{
		"cilium/state/nodes/v1/" + name + "/": &r.Nodes, "cilium/state/ip/v1/default/": &r.Endpoints,
		"cilium/state/identities/v1/id/": &r.Identities, "cilium/state/services/v1/" + name + "/": &r.Services,
	}
}

// synced says of which kinds the list is complete, by their canaries.
func synced(ctx context.Context, client *clientv3.Client, name string, cached bool) (map[string]bool, error) {
	answer, err := client.Get(ctx, "cilium/synced/"+name+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	base := "state"
	if cached {
		base = "cache"
	}
	done := map[string]bool{"nodes": false, "endpoints": false, "identities": false, "services": false}
	for _, kv := range answer.Kvs {
		for kind, path := range map[string]string{"nodes": "nodes", "endpoints": "ip", "identities": "identities", "services": "services"} {
			if strings.HasPrefix(string(kv.Key), "cilium/synced/"+name+"/cilium/"+base+"/"+path+"/v1") {
				done[kind] = true
			}
		}
	}
	return done, nil
}

// connect dials the store that a client file names. Names of Services are looked up at the Kubernetes API, as the agent does.
func connect(content []byte) (*clientv3.Client, error) {
	var f file
	if err := yaml.Unmarshal(content, &f); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	roots.AppendCertsFromPEM(ca)
	target, err := url.Parse(f.Endpoints[0])
	if err != nil {
		return nil, err
	}
	host := target.Hostname()
	for _, alias := range f.Aliases {
		if alias.Hostname == host {
			host = alias.IPs[0]
		}
	}
	if name, ok := strings.CutSuffix(host, ".svc"); ok {
		if host, err = clusterIP(name); err != nil {
			return nil, err
		}
	}
	return clientv3.New(clientv3.Config{
		Endpoints: f.Endpoints, Logger: zap.NewNop(), DialTimeout: 3 * time.Second,
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, target.Port()))
		})},
	})
}

// clusterIP asks the Kubernetes API for the address of a Service, given as NAME.NAMESPACE.
func clusterIP(service string) (string, error) {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return "", err
	}
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	name, namespace, _ := strings.Cut(service, ".")
	request, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://%s:%s/api/v1/namespaces/%s/services/%s",
		os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"), namespace, name), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var answer struct{ Spec struct{ ClusterIP string } }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.Spec.ClusterIP == "" {
		return "", fmt.Errorf("the Service %s: %s %v", service, response.Status, err)
	}
	return answer.Spec.ClusterIP, nil
}
