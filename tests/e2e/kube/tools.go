package kube

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Try runs kubectl and returns what it prints.
func (c *Cluster) Try(args ...string) (string, error) { return c.kubectl("", args...) }

// Apply applies manifests by server-side apply.
func (c *Cluster) Apply(manifests string) error {
	out, err := c.kubectl(manifests, "apply", "--server-side", "--force-conflicts", "-f", "-")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (c *Cluster) kubectl(stdin string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(c.Peers, "kubectl"), append([]string{"--kubeconfig=" + c.Kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir, "NO_PROXY=*")
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	return output(cmd)
}

// Helm runs helm on the cluster.
func (c *Cluster) Helm(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(c.Peers, "helm"), append([]string{"--kubeconfig=" + c.Kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir, "HELM_CACHE_HOME="+c.dir+"/helm", "HELM_CONFIG_HOME="+c.dir+"/helm",
		"HELM_DATA_HOME="+c.dir+"/helm", "NO_PROXY=*")
	return output(cmd)
}

// output returns what a command prints on stdout; the error has what the command prints on stderr.
func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err,
			bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// Post posts a document to a path of the API.
func (c *Cluster) Post(path, document string) (string, error) {
	return c.kubectl(document, "create", "--raw", path, "-f", "-")
}
