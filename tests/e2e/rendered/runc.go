package rendered

import (
	"path/filepath"
	"strings"

	"isthmus.dev/e2e/lab"
)

type dict = map[string]any

// config is the configuration of a container for runc, as containerd writes it for the chart's pod: no capabilities, no new
// privileges, a read-only root, and the network of the machine.
func (p *Pod) config(c Container) (dict, error) {
	env, err := p.environment(c)
	if err != nil {
		return nil, err
	}
	var args []string
	for _, arg := range append(append([]string{}, c.Command...), c.Args...) {
		for _, v := range env {
			name, value, _ := strings.Cut(v, "=")
			arg = strings.ReplaceAll(arg, "$("+name+")", value)
		}
		args = append(args, arg)
	}
	mounts := []dict{
		{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		bind(filepath.Join(p.dir, "hosts"), "/etc/hosts", true),
		bind(filepath.Join(p.dir, "account"), "/var/run/secrets/kubernetes.io/serviceaccount", true),
	}
	for _, mount := range c.VolumeMounts {
		source := filepath.Join(p.dir, "volumes", mount.Name, mount.SubPath)
		mounts = append(mounts, bind(source, mount.MountPath, mount.ReadOnly))
	}
	user := p.Spec.SecurityContext
	var namespaces []dict
	for _, kind := range []string{"pid", "ipc", "uts", "mount"} {
		namespaces = append(namespaces, dict{"type": kind})
	}
	return dict{
		"ociVersion": "1.0.2",
		"process": dict{
			"user": dict{"uid": user.RunAsUser, "gid": user.RunAsGroup, "additionalGids": []int{user.FSGroup}},
			"args": args, "env": env, "cwd": "/", "noNewPrivileges": true, "capabilities": dict{},
		},
		"root": dict{"path": p.root, "readonly": true}, "hostname": "pod", "mounts": mounts,
		"linux": dict{"namespaces": namespaces, "cgroupsPath": "/" + lab.Name() + "/" + filepath.Base(p.dir) + "-" + c.Name},
	}, nil
}

func bind(source, target string, readOnly bool) dict {
	options := []string{"rbind", "rw"}
	if readOnly {
		options[1] = "ro"
	}
	return dict{"destination": target, "type": "bind", "source": source, "options": options}
}
