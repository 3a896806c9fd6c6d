package e2e

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/lab"
	"isthmus.dev/e2e/mesh"
)

// Not a test: two connected clusters for a person, until Ctrl-C. `make e2e-up` runs it.
func TestUp(t *testing.T) {
	if os.Getenv("E2E_UP") == "" {
		t.Skip("only with E2E_UP=1, which `make e2e-up` sets")
	}
	tokyo, hk := cluster(t, "tokyo-cluster"), cluster(t, "hk-cluster")
	connect(t, tokyo, hk, ours)
	for _, c := range []*kube.Cluster{tokyo, hk} {
		check(t, c.Apply(mesh.Objects(c, pods)))
	}
	fmt.Printf("\nTwo clusters are connected. A shell in their network, with kubectl and helm, from another terminal:\n\n"+
		"  nsenter --all --target $(cat %s) env PATH=%s:$PATH KUBECONFIG=%s:%s bash\n\n"+
		"Their contexts are %s and %s. Ctrl-C ends everything.\n",
		filepath.Join(lab.State(), "pid"), variable("PEERS_BIN"), tokyo.Kubeconfig, hk.Kubeconfig, tokyo.Name, hk.Name)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
}
