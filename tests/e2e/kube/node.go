package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"isthmus.dev/e2e/lab"
	"isthmus.dev/e2e/pki"
)

// Node is a machine of a cluster with kubelet, containerd and kube-proxy.
type Node struct {
	*lab.Machine
	cluster *Cluster
	podNet  string // 10.244.0
	cgroup  string
}

// PauseImage is the tag of the image that holds the namespaces of a pod.
const PauseImage = "e2e.local/pause:1"

func (n *Node) path(name string) string { return filepath.Join(n.Dir, name) }

func (n *Node) write(name, format string, args ...any) error {
	if err := os.MkdirAll(filepath.Dir(n.path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(n.path(name), fmt.Appendf(nil, format, args...), 0o600)
}

func (n *Node) start() error {
	var err error
	if n.cgroup, err = lab.MakeCgroup(n.Name); err != nil {
		return err
	}
	if err := n.startContainerd(); err != nil {
		return err
	}
	if err := n.prepareKubelet(); err != nil {
		return err
	}
	if err := n.StartKubelet(); err != nil {
		return err
	}
	return n.startProxy()
}

func (n *Node) startContainerd() error {
	if err := n.write("cni/10-bridge.conflist", `{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "%s.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
  ]
}
`, n.path("ipam"), n.podNet); err != nil {
		return err
	}
	// Without CAP_SYS_RESOURCE, as in a sandbox, no process may lower its oom_score_adj: runc would fail.
	if err := n.write("containerd.toml", `version = 2
root = "%[1]s"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[3]s"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
`, n.path("containerd"), PauseImage, n.path("cni")); err != nil {
		return err
	}
	if err := n.Start("containerd", "containerd", "--config", n.path("containerd.toml")); err != nil {
		return err
	}
	if err := eventually("containerd of "+n.Name, func() error { return n.ctr("version") }); err != nil {
		return err
	}
	for _, image := range n.cluster.images {
		if err := n.Import(image); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) ctr(args ...string) error {
	out, err := n.Command("ctr", append([]string{"-n", "k8s.io"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr %v on %s: %w: %s", args, n.Name, err, out)
	}
	return nil
}

// Image is an archive with one image, and further names for it.
type Image struct {
	Archive string
	Names   []string
}

var unpacked = regexp.MustCompile(`(?m)^unpacking (\S+) `)

// Import gives an image to the node.
func (n *Node) Import(image Image) error {
	out, err := n.Command("ctr", "-n", "k8s.io", "images", "import", image.Archive).CombinedOutput()
	found := unpacked.FindSubmatch(out)
	if err != nil || found == nil {
		return fmt.Errorf("ctr images import %s on %s: %v: %s", image.Archive, n.Name, err, out)
	}
	for _, name := range image.Names {
		if name == string(found[1]) {
			continue
		}
		if err := n.ctr("images", "tag", "--force", string(found[1]), name); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) prepareKubelet() error {
	serving := n.cluster.ca.Issue(pki.Request{CommonName: "system:node:" + n.Name, Server: true, Hosts: []string{n.Address, n.Name}})
	if err := serving.Write(n.Dir, "kubelet"); err != nil {
		return err
	}
	if _, err := n.cluster.kubeconfig("system:node:"+n.Name, "system:nodes"); err != nil {
		return err
	}
	return n.write("kubelet.yaml", `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: "%[1]s"}
authorization: {mode: Webhook}
tlsCertFile: "%[2]s"
tlsPrivateKeyFile: "%[3]s"
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: "%[4]s"
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
evictionHard: {}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
imageMinimumGCAge: 24h
nodeStatusUpdateFrequency: 2s
resolvConf: /etc/resolv.conf
podLogsDir: "%[5]s"
volumePluginDir: "%[6]s"
`, filepath.Join(n.cluster.dir, "ca.crt"), n.path("kubelet.crt"), n.path("kubelet.key"), n.cgroup,
		filepath.Join(n.Logs, "pods"), n.path("plugins"))
}

// StartKubelet starts the kubelet, at the start of the node and after a loss.
func (n *Node) StartKubelet() error {
	return n.Start("kubelet", filepath.Join(n.cluster.Peers, "kubelet"), "--config="+n.path("kubelet.yaml"),
		"--kubeconfig="+filepath.Join(n.cluster.dir, "system:node:"+n.Name+".kubeconfig"),
		"--root-dir="+n.path("kubelet"), "--hostname-override="+n.Name, "--node-ip="+n.Address)
}

func (n *Node) startProxy() error {
	return n.Start("kube-proxy", filepath.Join(n.cluster.Peers, "kube-proxy"),
		"--kubeconfig="+filepath.Join(n.cluster.dir, "system:kube-proxy.kubeconfig"), "--hostname-override="+n.Name,
		"--proxy-mode=nftables", "--cluster-cidr="+n.cluster.PodNet+".0.0/16", "--conntrack-max-per-core=0",
		"--conntrack-min=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
}

// Lose takes the machine away at once, as a loss of power does.
func (n *Node) Lose() error {
	if err := n.Disconnect(); err != nil {
		return err
	}
	for _, service := range []string{"kubelet", "kube-proxy", "containerd"} {
		n.Kill(service)
	}
	return lab.KillCgroup(n.cgroup)
}
