package rendered

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// errMissing is what kubelet waits for.
var errMissing = errors.New("not found")

// files returns the files of a Secret or a ConfigMap.
func (o Objects) files(kind string, source *Source) (map[string][]byte, error) {
	name := source.Name + source.SecretName
	object, ok := o[kind+"/"+name]
	if !ok {
		if source.Optional {
			return nil, nil
		}
		return nil, fmt.Errorf("%s %q %w", kind, name, errMissing)
	}
	content := map[string][]byte{}
	for key, value := range object.Data {
		content[key] = []byte(value)
		if kind == "Secret" {
			decoded, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %s: %w", kind, name, key, err)
			}
			content[key] = decoded
		}
	}
	for key, value := range object.StringData {
		content[key] = []byte(value)
	}
	if len(source.Items) == 0 {
		return content, nil
	}
	files := map[string][]byte{}
	for _, item := range source.Items {
		value, ok := content[item.Key]
		if !ok && !source.Optional {
			return nil, fmt.Errorf("%s %q has no key %q", kind, name, item.Key)
		}
		if ok {
			files[item.Path] = value
		}
	}
	return files, nil
}

// volume makes the directory of a volume in kubelet's layout: the files are links through `..data`, which kubelet replaces at
// once when an object changes. The group of the pod may read them.
func (o Objects) volume(dir string, volume Volume, group int) error {
	files := map[string][]byte{}
	add := func(kind string, source *Source) error {
		more, err := o.files(kind, source)
		for path, content := range more {
			files[path] = content
		}
		return err
	}
	switch {
	case volume.EmptyDir != nil:
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		return errors.Join(os.Chown(dir, 0, group), os.Chmod(dir, 0o2777))
	case volume.Secret != nil:
		if err := add("Secret", volume.Secret); err != nil {
			return err
		}
	case volume.ConfigMap != nil:
		if err := add("ConfigMap", volume.ConfigMap); err != nil {
			return err
		}
	case volume.Projected != nil:
		for _, source := range volume.Projected.Sources {
			if source.Secret != nil {
				if err := add("Secret", source.Secret); err != nil {
					return err
				}
			}
			if source.ConfigMap != nil {
				if err := add("ConfigMap", source.ConfigMap); err != nil {
					return err
				}
			}
		}
	default:
		return fmt.Errorf("volume %s has a kind that this test does not know", volume.Name)
	}
	return writeVolume(dir, files, group)
}

func writeVolume(dir string, files map[string][]byte, group int) error {
	const stamp = "..2026_01_01"
	if err := os.MkdirAll(filepath.Join(dir, stamp), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(stamp, filepath.Join(dir, "..data")); err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(dir, stamp, name)
		if err := os.WriteFile(path, content, 0o440); err != nil {
			return err
		}
		if err := errors.Join(os.Chown(path, 0, group), os.Chmod(path, 0o440)); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
