package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"isthmus.dev/e2e/kube"
)

// Pod is what the tests want to know of a pod.
type Pod struct {
	Metadata struct {
		Name, UID         string
		DeletionTimestamp *time.Time
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase                                    string
		PodIP                                    string
		StartTime                                *time.Time
		Conditions                               []Condition
		ContainerStatuses, InitContainerStatuses []Container
	}
}

// Condition is a condition of a pod.
type Condition struct {
	Type, Status       string
	LastTransitionTime time.Time
}

// Container is the state of a container.
type Container struct {
	Name         string
	Ready        bool
	RestartCount int
	State        struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *struct {
			Reason, Message string
			ExitCode        int
		}
	}
	LastState struct {
		Terminated *struct {
			Reason, Message string
			ExitCode        int
		}
	}
}

// Pods lists the pods of Cluster Mesh that are not being deleted.
func Pods(cluster *kube.Cluster) ([]Pod, error) {
	out, err := cluster.Try("get", "pods", "-n", Namespace, "-l", "k8s-app=clustermesh-apiserver", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []Pod }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	var pods []Pod
	for _, pod := range list.Items {
		if pod.Metadata.DeletionTimestamp == nil {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// Ready is the time at which the pod became ready; zero if it is not.
func (p Pod) Ready() time.Time {
	for _, condition := range p.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return condition.LastTransitionTime
		}
	}
	return time.Time{}
}

// Why describes the containers of a pod that is not ready.
func (p Pod) Why() error {
	why := []string{p.Metadata.Name + ": " + p.Status.Phase}
	for _, container := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if container.Ready {
			continue
		}
		text := container.Name + " is not ready"
		switch {
		case container.State.Waiting != nil:
			text = container.Name + ": " + container.State.Waiting.Reason + " " + container.State.Waiting.Message
		case container.State.Terminated != nil:
			text = fmt.Sprint(container.Name, ": exit ", container.State.Terminated.ExitCode, " ", container.State.Terminated.Message)
		}
		if last := container.LastState.Terminated; last != nil {
			text += fmt.Sprint("; before: exit ", last.ExitCode, " ", last.Message)
		}
		why = append(why, strings.TrimSpace(text))
	}
	return errors.New(strings.Join(why, "; "))
}

// WaitReady waits until the Deployment has finished rolling out, and returns its pods.
func WaitReady(cluster *kube.Cluster, patience time.Duration) ([]Pod, error) {
	var pods []Pod
	err := Eventually(patience, func() error {
		out, err := cluster.Try("get", "deployment", "-n", Namespace, "clustermesh-apiserver", "-o", "json")
		if err != nil {
			return err
		}
		var deployment struct {
			Metadata struct{ Generation int }
			Spec     struct{ Replicas int }
			Status   struct{ ObservedGeneration, UpdatedReplicas, ReadyReplicas, Replicas int }
		}
		if err := json.Unmarshal([]byte(out), &deployment); err != nil {
			return err
		}
		if pods, err = Pods(cluster); err != nil {
			return err
		}
		s, want := deployment.Status, deployment.Spec.Replicas
		if s.ObservedGeneration == deployment.Metadata.Generation && s.UpdatedReplicas == want && s.ReadyReplicas == want &&
			s.Replicas == want && len(pods) == want {
			return nil
		}
		for _, pod := range pods {
			if pod.Ready().IsZero() {
				return pod.Why()
			}
		}
		return fmt.Errorf("the Deployment has %+v of %d replicas", s, want)
	})
	if err != nil {
		err = fmt.Errorf("not ready within %s: %w", patience, err)
	}
	return pods, err
}

// Exec runs a command in a container of a pod.
func Exec(cluster *kube.Cluster, pod, container string, command ...string) (string, error) {
	return cluster.Try(append([]string{"exec", "-n", Namespace, pod, "-c", container, "--"}, command...)...)
}

// Remote is a remote cluster in the answer of `kvstoremesh-dbg status -o json`.
type Remote struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Status string `json:"status"`

	Nodes      int `json:"num-nodes"`
	Endpoints  int `json:"num-endpoints"`
	Identities int `json:"num-identities"`
	Services   int `json:"num-shared-services"`
}

// Status asks the mirror of a pod for the remote clusters.
func Status(cluster *kube.Cluster, pod string) ([]Remote, error) {
	out, err := Exec(cluster, pod, "kvstoremesh", "/usr/bin/clustermesh-apiserver", "kvstoremesh-dbg", "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var remotes []Remote
	if err := json.Unmarshal([]byte(out), &remotes); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return remotes, nil
}

// Evict asks the API to evict a pod, as `kubectl drain` does.
func Evict(cluster *kube.Cluster, pod string) error {
	out, err := cluster.Post(fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", Namespace, pod),
		fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`, pod, Namespace))
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
