package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isthmus.dev/e2e/image"
	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/lab"
	"isthmus.dev/e2e/mesh"
)

// step is a command of the walk and the lines that it must print, in this order; lines between them are allowed. "A|B" allows
// two lines, and "…" at the end of a line anything.
type step struct {
	title string
	args  []string
	fails bool
	lines []string
}

// walk runs commands of a tool against the clusters and writes the output beside the expected lines.
type walk struct {
	t      *testing.T
	tool   []string
	env    []string
	report strings.Builder
}

func (w *walk) run(s step) {
	w.t.Helper()
	args := append(w.tool[1:], s.args...)
	cmd := exec.Command(w.tool[0], args...)
	cmd.Env = append(os.Environ(), w.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err := cmd.Run()
	fmt.Fprintf(&w.report, "## %s\n\n```\n$ %s %s\n%s```\n\n%.1f s, %v\n\n", s.title, filepath.Base(w.tool[0]), strings.Join(args, " "),
		out.String(), time.Since(start).Seconds(), exitOf(err))
	if (err != nil) != s.fails {
		w.t.Errorf("%s: %v\n%s", s.title, err, out.String())
	}
	printed := strings.Split(out.String(), "\n")
	for _, line := range s.lines {
		rest, ok := after(printed, line)
		mark := "expected"
		if !ok {
			mark = "MISSING "
			w.t.Errorf("%s: %q is not printed:\n%s", s.title, line, out.String())
		} else {
			printed = rest
		}
		fmt.Fprintf(&w.report, "    %s  %s\n", mark, line)
	}
	w.report.WriteString("\n")
}

func exitOf(err error) string {
	if err == nil {
		return "exit 0"
	}
	return err.Error()
}

// words makes texts comparable: the original's CLI has one space in some lines where its documents have two.
func words(text string) string { return strings.Join(strings.Fields(text), " ") }

// after returns the lines after the first that matches.
func after(lines []string, want string) ([]string, bool) {
	for i, line := range lines {
		for _, form := range strings.Split(want, "|") {
			prefix, open := strings.CutSuffix(form, "…")
			if words(line) == words(form) || open && strings.HasPrefix(words(line), words(prefix)) {
				return lines[i+1:], true
			}
		}
	}
	return lines, false
}

func (w *walk) save(name string) {
	path := filepath.Join(filepath.Dir(shared.logs), name)
	if err := os.WriteFile(path, []byte(w.report.String()), 0o644); err != nil {
		w.t.Error(err)
	}
}

const (
	nodePort = "⚠️  Service type NodePort detected! Service may fail when nodes are removed from the cluster!"
	agentTag = "e2e.local/agent:test"
)

// standInAgents puts agents that have no datapath into a cluster, beside an image for them.
func standInAgents(t *testing.T, c *kube.Cluster) {
	t.Helper()
	binary := filepath.Join(lab.State(), "agent")
	build := exec.Command("go", "build", "-o", binary, "./agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	archive := filepath.Join(lab.State(), "agent.tar")
	check(t, image.Write(archive, image.Spec{Tag: agentTag, Entrypoint: []string{"/usr/bin/cilium"}, Files: []image.File{
		{Path: "/usr/bin/cilium", Source: binary}, {Path: "/usr/bin/cilium-dbg", Link: "cilium"},
	}}))
	for _, node := range c.Nodes {
		check(t, node.Import(kube.Image{Archive: archive}))
	}
	check(t, c.Apply(mesh.Agents(c, agentTag)))
}

// ownConfig gives a cluster the ConfigMap of an agent, until the end of the test: the official chart makes its own. The same goes
// for the authority that `mesh enable` makes, and `mesh disable` leaves.
func ownConfig(t *testing.T, c *kube.Cluster) {
	t.Helper()
	check(t, c.Apply(mesh.Config(c)))
	t.Cleanup(func() {
		_, err := c.Try("delete", "configmap", "-n", mesh.Namespace, "cilium-config")
		check(t, err)
		_, err = c.Try("delete", "secret", "-n", mesh.Namespace, "cilium-ca", "--ignore-not-found")
		check(t, err)
	})
}

// statusLines are the lines of `status` before a connection.
func statusLines(address string) []string {
	return []string{nodePort, `✅ Service "clustermesh-apiserver" of type "NodePort" found`, "✅ Cluster access information is available:",
		"- " + address + ":32379", "✅ Deployment clustermesh-apiserver is ready",
		"ℹ️  KVStoreMesh is enabled|ℹ️  KVStoreMesh is disabled"}
}

func connectLines(tokyo, hk string) []string {
	return []string{
		"✨ Extracting access information of cluster tokyo-cluster...", "🔑 Extracting secrets from cluster tokyo-cluster...",
		nodePort, "ℹ️  Found ClusterMesh service IPs: [" + tokyo + "]",
		"✨ Extracting access information of cluster hk-cluster...", "🔑 Extracting secrets from cluster hk-cluster...",
		nodePort, "ℹ️  Found ClusterMesh service IPs: [" + hk + "]",
		"ℹ️  Configuring Cilium in cluster tokyo-cluster to connect to cluster hk-cluster",
		"ℹ️  Configuring Cilium in cluster hk-cluster to connect to cluster tokyo-cluster",
		"✅ Connected cluster tokyo-cluster <=> hk-cluster!",
	}
}

// The walk from two clusters without a mesh to two connected clusters, with our own CLI alone: no Helm release.
func TestWalkWithOurCLI(t *testing.T) {
	isthmus := variable("ISTHMUS_BIN")
	if exec.Command(isthmus, "mesh", "--help").Run() != nil {
		t.Skip("this binary has no subcommand mesh")
	}
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, shared.chart.Uninstall(c))
		ownConfig(t, c)
		standInAgents(t, c)
		check(t, c.Apply(mesh.Objects(c, pods)))
	}
	w := &walk{t: t, tool: []string{isthmus, "mesh"}, env: []string{"KUBECONFIG=" + tokyo.Kubeconfig + ":" + hk.Kubeconfig, "NO_PROXY=*"}}
	defer w.save("walk.md")
	w.run(step{title: "enable without a service type", args: []string{"enable", "--context", "tokyo-cluster"}, fails: true,
		lines: []string{"Error: …"}})
	for _, c := range []*kube.Cluster{tokyo, hk} {
		w.run(step{title: "enable in " + c.Name, args: []string{"enable", "--context", c.Name, "--service-type", "NodePort", "--image", ours}})
		w.run(step{title: "status of " + c.Name, args: []string{"status", "--wait", "--wait-duration", "2m", "--context", c.Name},
			lines: append(statusLines(c.Nodes[0].Address), "🔌 No cluster connected", "🔀 Global services: …")})
	}
	// Each enable has made a CA of its own: the refusal comes before anything is changed.
	connect := []string{"connect", "--context", "tokyo-cluster", "--destination-context", "hk-cluster"}
	w.run(step{title: "connect clusters with different CAs", args: connect, fails: true, lines: []string{"Error: Unable to connect cluster: …"}})
	w.run(step{title: "connect", args: append(connect, "--share-ca"), lines: connectLines(tokyo.Nodes[0].Address, hk.Nodes[0].Address)})
	afterConnect(t, w, tokyo, hk)
	w.run(step{title: "connect again", args: connect})
	w.run(step{title: "disconnect", args: []string{"disconnect", "--context", "tokyo-cluster", "--destination-context", "hk-cluster"}})
	for _, c := range []*kube.Cluster{tokyo, hk} {
		w.run(step{title: "disable in " + c.Name, args: []string{"disable", "--context", c.Name}})
	}
}

// afterConnect checks what both sides say, and that a pod that starts in Hong Kong is known in Tokyo.
func afterConnect(t *testing.T, w *walk, tokyo, hk *kube.Cluster) {
	t.Helper()
	for _, pair := range [][2]*kube.Cluster{{tokyo, hk}, {hk, tokyo}} {
		w.run(step{title: "status of " + pair[0].Name, args: []string{"status", "--wait", "--wait-duration", "4m", "--context", pair[0].Name},
			lines: append(statusLines(pair[0].Nodes[0].Address), "✅ All 1 nodes are connected to all clusters [min:1 / avg:1.0 / max:1]",
				"🔌 Cluster Connections:", "- "+pair[1].Name+": 1/1 configured, 1/1 connected…")})
	}
	client := must2(mesh.Client(tokyo, mesh.LocalUser))(t)
	defer client.Close()
	pod := marker()
	check(t, hk.Apply(mesh.Endpoint(hk, pod)))
	start := time.Now()
	check(t, mesh.Eventually(5*time.Second, func() error {
		key := "cilium/cache/ip/v1/" + hk.Name + "/" + mesh.PodIP(hk, pod)
		keys, err := mesh.Keys(client, key)
		if err == nil && !strings.Contains(keys[key], `"HostIP":"`+hk.Nodes[0].Address+`"`) {
			err = fmt.Errorf("%s is %q", key, keys[key])
		}
		return err
	}))
	fmt.Fprintf(&w.report, "The pod %s of Hong Kong is in Tokyo's store %.1f s after kubectl.\n\n", mesh.PodIP(hk, pod), time.Since(start).Seconds())
}

// The same walk with the original's CLI on the official chart with our image, where its program is at hand (CILIUM_CLI). The
// program that the original makes certificates with is not: the four secrets are imitated.
func TestWalkWithTheOriginalCLI(t *testing.T) {
	tool := os.Getenv("CILIUM_CLI")
	if tool == "" {
		t.Skip("CILIUM_CLI does not name the program `cilium`")
	}
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, shared.chart.Uninstall(c))
		values := base(c, mesh.Set("clustermesh.useAPIServer", false), mesh.Set("clustermesh.config.enabled", false))
		check(t, shared.chart.Install(c, values))
		standInAgents(t, c)
		check(t, secrets(c))
		check(t, c.Apply(mesh.Objects(c, pods)))
	}
	w := &walk{t: t, tool: []string{tool, "clustermesh"}, env: []string{"KUBECONFIG=" + tokyo.Kubeconfig + ":" + hk.Kubeconfig, "NO_PROXY=*"}}
	defer w.save("walk-original.md")
	for _, c := range []*kube.Cluster{tokyo, hk} {
		w.run(step{title: "enable in " + c.Name, args: []string{"enable", "--context", c.Name, "--service-type", "NodePort"},
			lines: []string{"⚠️  Using service type NodePort may fail when nodes are removed from the cluster!"}})
		w.run(step{title: "status of " + c.Name, args: []string{"status", "--wait", "--wait-duration", "2m", "--context", c.Name},
			lines: append(statusLines(c.Nodes[0].Address), "🔌 No cluster connected")})
	}
	w.run(step{title: "connect", args: []string{"connect", "--context", "tokyo-cluster", "--destination-context", "hk-cluster"},
		lines: connectLines(tokyo.Nodes[0].Address, hk.Nodes[0].Address)})
	for _, c := range []*kube.Cluster{tokyo, hk} {
		_, err := mesh.WaitReady(c, time.Minute)
		check(t, err)
	}
	afterConnect(t, w, tokyo, hk)
	w.run(step{title: "disconnect", args: []string{"disconnect", "--context", "tokyo-cluster", "--destination-context", "hk-cluster"},
		lines: []string{"✅ Disconnected clusters tokyo-cluster <x> hk-cluster!"}})
}
