// Package kube runs real Kubernetes clusters on machines of a lab: an Isthmus store as the etcd of kube-apiserver, the
// controller manager, the scheduler, and kubelet, containerd and kube-proxy on each node.
package kube

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"isthmus.dev/e2e/lab"
	"isthmus.dev/e2e/pki"
)

// Programs are the places of what a cluster is made of. Peers has the programs of Kubernetes.
type Programs struct {
	Peers   string
	Isthmus string
}

// Config describes a cluster.
type Config struct {
	Name      string // also the context in the kubeconfig
	ID        int    // of the cluster in the mesh
	Region    string
	Gateway   string   // of the region, without prefix length
	Addresses []string // addresses of the machines, without prefix length; the first is the control plane, too
	PodNet    string   // the first two numbers of the pods' networks: node i has PodNet.i.0/24
	Services  string   // the first two numbers of the services' network
}

// Cluster is a running cluster.
type Cluster struct {
	Config
	Programs
	Nodes      []*Node
	Kubeconfig string // of an administrator; reaches the cluster from the lab's network

	dir    string
	logs   string
	ca     *pki.CA
	front  *pki.CA
	images []Image
}

const patience = 90 * time.Second

// eventually waits for a condition.
func eventually(what string, condition func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Start starts a cluster whose nodes have the images, and waits until all nodes are ready.
func Start(config Config, programs Programs, logs string, images ...Image) (*Cluster, error) {
	c := &Cluster{
		Config: config, Programs: programs, logs: logs, images: images,
		dir: filepath.Join(lab.State(), config.Name+"-control"),
		ca:  pki.NewCA("kubernetes", "ecdsa"), front: pki.NewCA("front-proxy", "ecdsa"),
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	for i := range config.Addresses {
		if err := c.newNode(i); err != nil {
			return nil, err
		}
	}
	if err := c.startControlPlane(); err != nil {
		return nil, err
	}
	errs := make(chan error)
	for _, n := range c.Nodes {
		go func() { errs <- n.start() }()
	}
	for range c.Nodes {
		if err := <-errs; err != nil {
			return nil, err
		}
	}
	return c, c.WaitReady()
}

func (c *Cluster) newNode(i int) error {
	name := c.Name
	if i > 0 {
		name = fmt.Sprintf("%s-%d", c.Name, i+1)
	}
	machine, err := lab.NewMachine(name, c.Region, c.Config.Addresses[i]+"/16", c.Gateway, c.logs)
	if err != nil {
		return err
	}
	podNet := fmt.Sprintf("%s.%d", c.PodNet, i)
	if err := lab.Route(podNet+".0/24", machine.Address); err != nil {
		return err
	}
	c.Nodes = append(c.Nodes, &Node{Machine: machine, cluster: c, podNet: podNet})
	return nil
}

// file writes a file of the control plane and returns its path.
func (c *Cluster) file(name string, content []byte) (string, error) {
	path := filepath.Join(c.dir, name)
	return path, os.WriteFile(path, content, 0o600)
}

func (c *Cluster) server() string { return "https://" + c.Nodes[0].Address + ":6443" }

// kubeconfig makes the kubeconfig of a user of the cluster.
func (c *Cluster) kubeconfig(user string, groups ...string) (string, error) {
	pair := c.ca.Issue(pki.Request{CommonName: user, Organizations: groups, Client: true})
	return c.file(user+".kubeconfig", fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster: {server: "%[2]s", certificate-authority-data: %[3]s}
users:
- name: %[1]s
  user: {client-certificate-data: %[4]s, client-key-data: %[5]s}
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[1]s}
current-context: %[1]s
`, c.Name, c.server(), base64.StdEncoding.EncodeToString(c.ca.PEM),
		base64.StdEncoding.EncodeToString(pair.Cert), base64.StdEncoding.EncodeToString(pair.Key)))
}

func (c *Cluster) writeCertificates() error {
	first := c.Nodes[0].Address
	accounts := pki.NewCA("service-accounts", "rsa")
	if _, err := c.file("ca.crt", c.ca.PEM); err != nil {
		return err
	}
	if _, err := c.file("front.crt", c.front.PEM); err != nil {
		return err
	}
	if _, err := c.file("accounts.key", accounts.KeyPEM); err != nil {
		return err
	}
	for name, pair := range map[string]pki.Pair{
		"apiserver": c.ca.Issue(pki.Request{CommonName: "kube-apiserver", Server: true, Hosts: []string{
			first, "127.0.0.1", c.Services + ".0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}}),
		"apiserver-kubelet": c.ca.Issue(pki.Request{
			CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}, Client: true}),
		"front-client": c.front.Issue(pki.Request{CommonName: "front-proxy-client", Client: true}),
	} {
		if err := pair.Write(c.dir, name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startControlPlane() error {
	if err := c.writeCertificates(); err != nil {
		return err
	}
	host := c.Nodes[0].Machine
	if err := host.Start("etcd", c.Isthmus, "etcd", "--data-dir="+filepath.Join(c.dir, "etcd"), "--name=etcd",
		"--listen-client-urls=http://127.0.0.1:12379", "--advertise-client-urls=http://127.0.0.1:12379",
		"--listen-peer-urls=http://127.0.0.1:12380"); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(c.dir, name) }
	if err := host.Start("kube-apiserver", filepath.Join(c.Peers, "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:12379", "--secure-port=6443", "--advertise-address="+host.Address,
		"--service-cluster-ip-range="+c.Services+".0.0/16", "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file="+in("ca.crt"), "--tls-cert-file="+in("apiserver.crt"), "--tls-private-key-file="+in("apiserver.key"),
		"--kubelet-client-certificate="+in("apiserver-kubelet.crt"), "--kubelet-client-key="+in("apiserver-kubelet.key"),
		"--kubelet-certificate-authority="+in("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+in("accounts.key"),
		"--service-account-signing-key-file="+in("accounts.key"),
		"--requestheader-client-ca-file="+in("front.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+in("front-client.crt"), "--proxy-client-key-file="+in("front-client.key"),
		"--default-not-ready-toleration-seconds=5", "--default-unreachable-toleration-seconds=5",
		"--cert-dir="+c.dir); err != nil {
		return err
	}
	var err error
	if c.Kubeconfig, err = c.kubeconfig("admin", "system:masters"); err != nil {
		return err
	}
	for _, user := range []string{"system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"} {
		if _, err := c.kubeconfig(user); err != nil {
			return err
		}
	}
	// The controller manager ends if the API server does not become healthy in time.
	if err := eventually("kube-apiserver of "+c.Name, func() error {
		out, err := c.Try("get", "--raw=/readyz")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}); err != nil {
		return err
	}
	return c.startManagers()
}

func (c *Cluster) startManagers() error {
	host := c.Nodes[0].Machine
	in := func(name string) string { return filepath.Join(c.dir, name) }
	if err := host.Start("kube-controller-manager", filepath.Join(c.Peers, "kube-controller-manager"),
		"--kubeconfig="+in("system:kube-controller-manager.kubeconfig"), "--use-service-account-credentials",
		"--service-account-private-key-file="+in("accounts.key"), "--root-ca-file="+in("ca.crt"), "--leader-elect=false",
		"--node-monitor-grace-period=8s", "--node-monitor-period=1s", "--cert-dir="+c.dir); err != nil {
		return err
	}
	return host.Start("kube-scheduler", filepath.Join(c.Peers, "kube-scheduler"),
		"--kubeconfig="+in("system:kube-scheduler.kubeconfig"), "--leader-elect=false", "--cert-dir="+c.dir)
}

// WaitReady waits until every node says that it is ready.
func (c *Cluster) WaitReady() error {
	for _, n := range c.Nodes {
		if err := eventually("node "+n.Name, func() error {
			out, err := c.Try("get", "node", n.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			if err == nil && out != "True" {
				err = fmt.Errorf("Ready is %q", out)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
