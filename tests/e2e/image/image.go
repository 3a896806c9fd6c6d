// Package image packs programs into image archives that `ctr images import` takes: no container engine, no registry.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// File is an entry of an image: the content of a file of this machine, given content, a link, or a directory.
type File struct {
	Path    string
	Source  string
	Content []byte
	Link    string
	Mode    int64 // 0755 if zero
	Owner   int
}

// Spec is an image with one layer.
type Spec struct {
	Tag        string
	Entrypoint []string
	User       string
	Files      []File
}

// environment has what Cilium's programs need beside the path: they fail where gops cannot make its directory.
var environment = []string{"PATH=/usr/bin", "GOPS_CONFIG_DIR=/tmp/gops"}

// Write writes the image as an archive in Docker's format.
func Write(path string, s Spec) error {
	layer, err := layerOf(s.Files)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": s.Entrypoint, "User": s.User, "Env": environment},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(config)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{s.Tag}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	w := tar.NewWriter(out)
	for _, part := range []struct {
		name    string
		content []byte
	}{{"layer.tar", layer}, {configName, config}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: int64(len(part.content))}); err != nil {
			return err
		}
		if _, err := w.Write(part.content); err != nil {
			return err
		}
	}
	return w.Close()
}

func layerOf(files []File) ([]byte, error) {
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	made := map[string]bool{}
	for _, f := range files {
		path := strings.TrimPrefix(f.Path, "/")
		if err := parents(w, path, made); err != nil {
			return nil, err
		}
		mode := f.Mode
		if mode == 0 {
			mode = 0o755
		}
		header := &tar.Header{Name: path, Mode: mode, Uid: f.Owner, Gid: f.Owner}
		content := f.Content
		switch {
		case f.Link != "":
			header.Typeflag, header.Linkname = tar.TypeSymlink, f.Link
		case strings.HasSuffix(path, "/"):
			header.Typeflag = tar.TypeDir
			made[strings.TrimSuffix(path, "/")] = true
		case f.Source != "":
			read, err := os.ReadFile(f.Source)
			if err != nil {
				return nil, err
			}
			content = read
		}
		header.Size = int64(len(content))
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	return buffer.Bytes(), w.Close()
}

func parents(w *tar.Writer, path string, made map[string]bool) error {
	parts := strings.Split(strings.TrimSuffix(path, "/"), "/")
	for i := 1; i < len(parts); i++ {
		dir := strings.Join(parts[:i], "/")
		if made[dir] {
			continue
		}
		made[dir] = true
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			return err
		}
	}
	return nil
}

var library = regexp.MustCompile(`(?m)(?:=> )?(/\S+) \(0x`)

// Libraries lists the shared libraries of programs, as files of the image. A static program has none.
func Libraries(programs ...string) []File {
	var paths []string
	for _, program := range programs {
		out, err := exec.Command("ldd", program).Output()
		if err != nil {
			continue // not a dynamic executable
		}
		for _, match := range library.FindAllSubmatch(out, -1) {
			paths = append(paths, string(match[1]))
		}
	}
	slices.Sort(paths)
	var files []File
	for _, path := range slices.Compact(paths) {
		files = append(files, File{Path: path, Source: path})
	}
	return files
}

// Pause is the image that holds the namespaces of a pod: a static program that sleeps until it is told to end.
func Pause(dir, path, tag string) error {
	source := filepath.Join(dir, "pause.c")
	const program = `#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, SIG_IGN); for (;;) pause(); }
`
	if err := os.WriteFile(source, []byte(program), 0o644); err != nil {
		return err
	}
	binary := filepath.Join(dir, "pause")
	if out, err := exec.Command("cc", "-static", "-O2", "-s", "-o", binary, source).CombinedOutput(); err != nil {
		return fmt.Errorf("cc: %w: %s", err, out)
	}
	return Write(path, Spec{Tag: tag, Entrypoint: []string{"/pause"}, Files: []File{{Path: "/pause", Source: binary}}})
}

// etcdConfig is the client file that the chart's pod finds in its image.
const etcdConfig = `---
endpoints:
- https://127.0.0.1:2379
trusted-ca-file: /var/lib/cilium/etcd-secrets/ca.crt
key-file: /var/lib/cilium/etcd-secrets/tls.key
cert-file: /var/lib/cilium/etcd-secrets/tls.crt
`

// Pod packs an image for the chart's pod from a clustermesh-apiserver and an etcd; where etcd is empty, the former is both.
func Pod(path, tag, apiserver, etcd string) error {
	files := []File{
		{Path: "/usr/bin/clustermesh-apiserver", Source: apiserver},
		{Path: "/var/lib/cilium/etcd-config.yaml", Content: []byte(etcdConfig), Mode: 0o644},
		{Path: "/var/run/cilium/", Mode: 0o777},
		{Path: "/tmp/", Mode: 0o1777},
		{Path: "/etc/passwd", Content: []byte("nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"), Mode: 0o644},
	}
	programs := []string{apiserver}
	if etcd == "" {
		files = append(files, File{Path: "/usr/bin/etcd", Link: "clustermesh-apiserver"})
	} else {
		files = append(files, File{Path: "/usr/bin/etcd", Source: etcd})
		programs = append(programs, etcd)
	}
	files = append(files, Libraries(programs...)...)
	return Write(path, Spec{Tag: tag, Entrypoint: []string{"/usr/bin/clustermesh-apiserver"}, User: "65532:65532", Files: files})
}

// Strip copies a program without its symbols, which make most of a debug build.
func Strip(program, path string) (string, error) {
	if out, err := exec.Command("strip", "-o", path, program).CombinedOutput(); err != nil {
		return "", fmt.Errorf("strip %s: %w: %s", program, err, out)
	}
	return path, nil
}
