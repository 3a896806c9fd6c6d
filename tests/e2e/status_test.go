package e2e

import (
	"fmt"

	"isthmus.dev/e2e/kube"
	"isthmus.dev/e2e/mesh"
)

// allKeys is the number of keys that the objects of a cluster make: endpoints, a node, an identity and a service.
const allKeys = pods + 3

func errFew(keys int) error { return fmt.Errorf("only %d keys", keys) }

// statusIs compares what the mirrors of a cluster say of a remote cluster.
func statusIs(c *kube.Cluster, want mesh.Remote) error {
	pods, err := mesh.Pods(c)
	if err != nil {
		return err
	}
	for _, pod := range pods {
		remotes, err := mesh.Status(c, pod.Metadata.Name)
		if err != nil {
			return err
		}
		found := false
		for _, got := range remotes {
			if got.Name != want.Name {
				continue
			}
			found = true
			text := got.Status
			got.Status = ""
			if got != want {
				return fmt.Errorf("status of %s: %+v (%s), want %+v", want.Name, got, text, want)
			}
		}
		if !found {
			return fmt.Errorf("status does not name %s", want.Name)
		}
	}
	return nil
}
