// Package rendered runs the pod of a rendered chart without Kubernetes: its containers under runc, as kubelet and a container
// engine would start them, beside an API server that only lists objects. It needs no build of Kubernetes.
package rendered

import (
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// Object is an object of Kubernetes with the fields that the tests read.
type Object struct {
	Kind     string
	Metadata struct {
		Name, Namespace string
	}
	Data       map[string]string
	StringData map[string]string
	Spec       json.RawMessage
	raw        json.RawMessage
}

// Objects are objects by kind and name.
type Objects map[string]Object

// Parse reads manifests.
func Parse(manifests ...string) (Objects, error) {
	objects := Objects{}
	for _, manifest := range manifests {
		for _, document := range strings.Split("\n"+manifest, "\n---") {
			var object Object
			raw, err := yaml.YAMLToJSON([]byte(document))
			if err == nil {
				err = json.Unmarshal(raw, &object)
			}
			if err != nil {
				return nil, fmt.Errorf("%w in %s", err, document)
			}
			object.raw = raw
			if object.Kind != "" {
				objects[object.Kind+"/"+object.Metadata.Name] = object
			}
		}
	}
	return objects, nil
}

// Deployment is the part of a Deployment that makes a pod.
type Deployment struct {
	Template struct{ Spec PodSpec }
}

// PodSpec is what kubelet reads to start a pod.
type PodSpec struct {
	InitContainers, Containers []Container
	Volumes                    []Volume
	HostAliases                []struct {
		IP        string `json:"ip"`
		Hostnames []string
	}
	SecurityContext struct{ RunAsUser, RunAsGroup, FSGroup int }
}

// Container is a container of a pod.
type Container struct {
	Name          string
	Command, Args []string
	Env           []Variable
	VolumeMounts  []struct {
		Name, MountPath, SubPath string
		ReadOnly                 bool
	}
	ReadinessProbe *struct {
		HTTPGet struct {
			Path string
			Port any
		} `json:"httpGet"`
	}
	Ports []struct {
		Name          string
		ContainerPort int
	}
	SecurityContext struct{ ReadOnlyRootFilesystem bool }
}

// Variable is an environment variable.
type Variable struct {
	Name, Value string
	ValueFrom   *struct {
		ConfigMapKeyRef *struct {
			Name, Key string
			Optional  bool
		}
		FieldRef *struct{ FieldPath string }
	}
}

// Volume is a volume of a pod.
type Volume struct {
	Name      string
	Secret    *Source
	ConfigMap *Source
	EmptyDir  *struct{}
	Projected *struct {
		DefaultMode int
		Sources     []struct{ Secret, ConfigMap *Source }
	}
}

// Source is a Secret or a ConfigMap as files. A volume names a Secret by SecretName, a projection by Name.
type Source struct {
	Name, SecretName string
	Optional         bool
	DefaultMode      int
	Items            []struct {
		Key, Path string
		Mode      int
	}
}
