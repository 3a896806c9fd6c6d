package e2e

import (
	"fmt"
	"testing"
	"time"

	"isthmus.dev/e2e/mesh"
)

// The machine of the pod is lost: its network, kubelet and containers. The other machine of the cluster takes the pod over, and
// clients that come through that machine list once.
func TestLossOfAMachine(t *testing.T) {
	osaka, hk := cluster(t, "osaka-cluster"), cluster(t, "hk-cluster")
	check(t, shared.chart.Install(osaka, base(osaka, mesh.Peer(hk.Name, hk.Nodes[0].Address))))
	check(t, shared.chart.Install(hk, base(hk, mesh.Peer(osaka.Name, osaka.Nodes[0].Address))))
	check(t, osaka.Apply(mesh.Objects(osaka, pods)))
	list := must2(mesh.WaitReady(osaka, time.Minute))(t)
	if list[0].Spec.NodeName == osaka.Nodes[0].Name {
		// The first machine has the control plane: move the pod to the second.
		_, err := osaka.Try("cordon", osaka.Nodes[0].Name)
		check(t, err)
		check(t, mesh.Evict(osaka, list[0].Metadata.Name))
		check(t, mesh.Eventually(time.Minute, func() error {
			now, err := mesh.WaitReady(osaka, time.Second)
			if err == nil && now[0].Spec.NodeName != osaka.Nodes[1].Name {
				err = fmt.Errorf("the pod is on %s", now[0].Spec.NodeName)
			}
			return err
		}))
		_, err = osaka.Try("uncordon", osaka.Nodes[0].Name)
		check(t, err)
	}
	check(t, mesh.Eventually(time.Minute, func() error {
		_, err := mesh.Mirrors(osaka, hk)
		return err
	}))
	seen := under(t, osaka, hk, osaka.Nodes[0].Address+":32379", func() {
		check(t, osaka.Nodes[1].Lose())
		check(t, mesh.Eventually(2*time.Minute, func() error {
			now, err := mesh.Pods(osaka)
			for _, pod := range now {
				if err == nil && pod.Spec.NodeName == osaka.Nodes[0].Name && !pod.Ready().IsZero() {
					return nil
				}
			}
			return fmt.Errorf("no pod is ready on the other machine: %v", err)
		}))
	})
	t.Log(seen)
	if seen.lists > watching {
		t.Errorf("%d lists of %d clients", seen.lists, watching)
	}
}
