package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Unpack writes the layers of an image archive, OCI's or Docker's, into a directory, as a container engine does.
func Unpack(archive, dir string) error {
	files, err := members(archive)
	if err != nil {
		return err
	}
	layers, err := layersOf(files)
	if err != nil {
		return fmt.Errorf("%s: %w", archive, err)
	}
	for _, layer := range layers {
		if err := extract(layer, dir); err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
	}
	return nil
}

func members(archive string) (map[string][]byte, error) {
	file, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if files[strings.TrimPrefix(header.Name, "./")], err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
}

type descriptor struct {
	Digest   string
	Platform struct{ Architecture string }
}

func (d descriptor) path() string { return "blobs/" + strings.ReplaceAll(d.Digest, ":", "/") }

func layersOf(files map[string][]byte) ([][]byte, error) {
	var layers [][]byte
	if index, ok := files["index.json"]; ok {
		content := index
		for {
			var node struct{ Manifests, Layers []descriptor }
			if err := json.Unmarshal(content, &node); err != nil {
				return nil, err
			}
			if len(node.Layers) > 0 {
				for _, layer := range node.Layers {
					layers = append(layers, files[layer.path()])
				}
				return layers, nil
			}
			if len(node.Manifests) == 0 {
				return nil, fmt.Errorf("no layers")
			}
			next := node.Manifests[0]
			for _, manifest := range node.Manifests {
				if manifest.Platform.Architecture == "amd64" {
					next = manifest
				}
			}
			content = files[next.path()]
		}
	}
	var manifests []struct{ Layers []string }
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		return nil, err
	}
	for _, layer := range manifests[0].Layers {
		layers = append(layers, files[layer])
	}
	return layers, nil
}

func extract(layer []byte, dir string) error {
	var reader io.Reader = bytes.NewReader(layer)
	if zipped, err := gzip.NewReader(bytes.NewReader(layer)); err == nil {
		reader = zipped
	}
	for r := tar.NewReader(reader); ; {
		header, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := place(r, header, filepath.Join(dir, filepath.Clean("/"+header.Name))); err != nil {
			return err
		}
	}
}

func place(r io.Reader, header *tar.Header, path string) error {
	mode := header.FileInfo().Mode()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	case tar.TypeSymlink:
		_ = os.Remove(path)
		return os.Symlink(header.Linkname, path)
	case tar.TypeLink:
		return os.Link(filepath.Join(strings.TrimSuffix(path, header.Name), header.Linkname), path)
	case tar.TypeReg:
		file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if _, err := io.Copy(file, r); err != nil {
			file.Close()
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
	default:
		return nil
	}
	if err := os.Chown(path, header.Uid, header.Gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
