package rendered

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"isthmus.dev/e2e/lab"
)

// Pod is a running pod: containers under runc in the network of a machine.
type Pod struct {
	Spec    PodSpec
	Machine *lab.Machine

	dir, root string
	ids       map[string]string
	objects   Objects
	api       *API
}

// Start starts the pod of the Deployment `clustermesh-apiserver` on a machine. root is the unpacked image.
func Start(objects Objects, machine *lab.Machine, name, root string, api *API) (*Pod, error) {
	var deployment Deployment
	if err := json.Unmarshal(objects["Deployment/clustermesh-apiserver"].Spec, &deployment); err != nil {
		return nil, fmt.Errorf("the Deployment: %w", err)
	}
	p := &Pod{
		Spec: deployment.Template.Spec, Machine: machine, dir: filepath.Join(machine.Dir, name), root: root,
		ids: map[string]string{}, objects: objects, api: api,
	}
	for _, volume := range p.Spec.Volumes {
		// As kubelet, ignore volumes that no container mounts: they may name objects that do not exist.
		if !p.mounted(volume.Name) {
			continue
		}
		if err := objects.volume(filepath.Join(p.dir, "volumes", volume.Name), volume, p.Spec.SecurityContext.FSGroup); err != nil {
			return p, err
		}
	}
	if err := p.files(); err != nil {
		return p, err
	}
	for _, container := range p.Spec.InitContainers {
		if err := p.run(container, true); err != nil {
			return p, err
		}
	}
	for _, container := range p.Spec.Containers {
		if err := p.run(container, false); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *Pod) mounted(volume string) bool {
	for _, c := range append(append([]Container{}, p.Spec.InitContainers...), p.Spec.Containers...) {
		for _, mount := range c.VolumeMounts {
			if mount.Name == volume {
				return true
			}
		}
	}
	return false
}

// files makes what kubelet gives to every pod: /etc/hosts and the credentials of the service account.
func (p *Pod) files() error {
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for _, alias := range p.Spec.HostAliases {
		hosts += alias.IP + " " + strings.Join(alias.Hostnames, " ") + "\n"
	}
	account := filepath.Join(p.dir, "account")
	if err := os.MkdirAll(account, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(p.dir, "hosts"), []byte(hosts), 0o644),
		os.WriteFile(filepath.Join(account, "token"), []byte("token"), 0o644),
		os.WriteFile(filepath.Join(account, "namespace"), []byte("kube-system"), 0o644),
		os.WriteFile(filepath.Join(account, "ca.crt"), p.api.CA, 0o644),
	)
}

func (p *Pod) environment(c Container) ([]string, error) {
	host, port, _ := strings.Cut(p.api.Address, ":")
	env := []string{"PATH=/usr/bin", "KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port}
	for _, v := range c.Env {
		value := v.Value
		if from := v.ValueFrom; from != nil {
			switch {
			case from.FieldRef != nil:
				value = "3f0c6a3e-0000-4000-8000-000000000001" // metadata.uid
			case from.ConfigMapKeyRef != nil:
				ref := from.ConfigMapKeyRef
				found, ok := p.objects["ConfigMap/"+ref.Name].Data[ref.Key]
				if !ok && ref.Optional {
					continue
				}
				if !ok {
					return nil, fmt.Errorf("%s: ConfigMap %q has no key %q", c.Name, ref.Name, ref.Key)
				}
				value = found
			}
		}
		env = append(env, v.Name+"="+value)
	}
	return env, nil
}

// run starts a container and, for an init container, waits for its end.
func (p *Pod) run(c Container, wait bool) error {
	bundle := filepath.Join(p.dir, c.Name)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	config, err := p.config(c)
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), encoded, 0o644); err != nil {
		return err
	}
	id := filepath.Base(p.dir) + "-" + c.Name
	p.ids[c.Name] = id
	if wait {
		if out, err := p.Machine.Command("runc", "run", "--bundle", bundle, id).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c.Name, err, out)
		}
		return nil
	}
	return p.Machine.Start(id, "runc", "run", "--bundle", bundle, id)
}

// Exec runs a command in a container.
func (p *Pod) Exec(container string, command ...string) (string, error) {
	out, err := p.Machine.Command("runc", append([]string{"exec", p.ids[container]}, command...)...).CombinedOutput()
	return string(out), err
}

// WaitReady waits until the readiness probes of all containers succeed.
func (p *Pod) WaitReady(patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for _, c := range p.Spec.Containers {
		if c.ReadinessProbe == nil {
			continue
		}
		port := fmt.Sprint(c.ReadinessProbe.HTTPGet.Port)
		for _, named := range c.Ports {
			if named.Name == port {
				port = fmt.Sprint(named.ContainerPort)
			}
		}
		url := fmt.Sprintf("http://%s:%s%s", p.Machine.Address, port, c.ReadinessProbe.HTTPGet.Path)
		for {
			text, ok := get(url)
			if ok {
				break
			}
			if !p.Machine.Alive(p.ids[c.Name]) {
				return fmt.Errorf("%s ended: see %s", c.Name, filepath.Join(p.Machine.Logs, p.ids[c.Name]+".log"))
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s is not ready within %s: %s", c.Name, patience, text)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

func get(url string) (string, bool) {
	client := http.Client{Timeout: time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err.Error(), false
	}
	response.Body.Close()
	return response.Status, response.StatusCode == http.StatusOK
}

// Stop ends the pod.
func (p *Pod) Stop() {
	for _, id := range p.ids {
		_ = p.Machine.Command("runc", "delete", "--force", id).Run()
	}
}
