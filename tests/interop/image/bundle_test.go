package image

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nonroot is the user and group of the chart's containers.
const nonroot = 65532

// sizes of an image in bytes.
type sizes struct{ compressed, unpacked int64 }

// unpack writes the files of the only image in an OCI archive below root.
func unpack(t *testing.T, archive, root string) sizes {
	t.Helper()
	blobs := map[string][]byte{}
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	each(t, file, func(h *tar.Header, content io.Reader) {
		bytes, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		blobs[h.Name] = bytes
	})
	var index struct{ Manifests []struct{ Digest string } }
	decode(t, blobs["index.json"], &index)
	var manifest struct {
		Layers []struct {
			Digest string
			Size   int64
		}
	}
	decode(t, blobs[blobPath(index.Manifests[0].Digest)], &manifest)
	if len(manifest.Layers) == 0 {
		t.Fatalf("%s has no image of a single platform: make one with `make image`", archive)
	}
	var found sizes
	for _, layer := range manifest.Layers {
		found.compressed += layer.Size
		gz, err := gzip.NewReader(strings.NewReader(string(blobs[blobPath(layer.Digest)])))
		if err != nil {
			t.Fatal(err)
		}
		each(t, gz, func(h *tar.Header, content io.Reader) {
			found.unpacked += h.Size
			place(t, filepath.Join(root, h.Name), h, content)
		})
	}
	return found
}

func blobPath(digest string) string { return "blobs/" + strings.ReplaceAll(digest, ":", "/") }

func decode(t *testing.T, bytes []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(bytes, into); err != nil {
		t.Fatal(err)
	}
}

func each(t *testing.T, from io.Reader, do func(*tar.Header, io.Reader)) {
	t.Helper()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		do(h, r)
	}
}

func place(t *testing.T, path string, h *tar.Header, content io.Reader) {
	t.Helper()
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		err = os.MkdirAll(path, 0o755)
	case tar.TypeSymlink:
		err = os.Symlink(h.Linkname, path)
	case tar.TypeReg:
		var file *os.File
		if file, err = os.Create(path); err == nil {
			_, err = io.Copy(file, content)
			err = errors.Join(err, file.Close())
		}
	default:
		t.Fatalf("%s has the type %q, which an image should not need", h.Name, h.Typeflag)
	}
	if err == nil {
		err = os.Lchown(path, h.Uid, h.Gid)
	}
	if err == nil && h.Typeflag != tar.TypeSymlink {
		// After the change of owner, which takes bits off.
		err = syscall.Chmod(path, uint32(h.Mode))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mount is a volume of a container, read-only unless said otherwise.
type mount struct {
	from, to string
	write    bool
}

// container runs under runc as kubelet would run it with the strictest security context: no capabilities, no new
// privileges, a read-only root, user 65532.
type container struct {
	name    string
	command []string
	cmd     *exec.Cmd
	log     string
	started time.Time
	done    chan struct{}
}

// run starts a container on the image at root.
func run(t *testing.T, root, name string, mounts []mount, env []string, args ...string) *container {
	t.Helper()
	bundle := t.TempDir()
	id := fmt.Sprintf("isthmus-image-%d-%s", os.Getpid(), name)
	spec, err := json.Marshal(specification(t, root, id, mounts, env, args))
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &container{name: name, command: args, log: filepath.Join(bundle, "log"), done: make(chan struct{})}
	out, err := os.Create(c.log)
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	c.cmd = exec.Command("runc", "--root", state, "run", "--bundle", bundle, id)
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.started = time.Now()
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.cmd.Wait()
		out.Close()
		close(c.done)
	}()
	t.Cleanup(func() {
		select {
		case <-c.done:
		default:
			exec.Command("runc", "--root", state, "kill", id, "KILL").Run()
			<-c.done
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, c.output(t))
		}
	})
	return c
}

func specification(t *testing.T, root, id string, mounts []mount, env, args []string) map[string]any {
	all := []map[string]any{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=65536k"}},
		{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": []string{"nosuid", "mode=1777", "size=65536k"}},
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, m := range append(mounts, mount{from: hosts, to: "/etc/hosts"}) {
		access := "ro"
		if m.write {
			access = "rw"
		}
		all = append(all, map[string]any{"destination": m.to, "type": "bind", "source": m.from, "options": []string{"rbind", access}})
	}
	none := []string{}
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"args": args, "cwd": "/", "noNewPrivileges": true,
			// The original's image names a directory for its debugger, which ends a mirror that cannot write there.
			"env": append([]string{"PATH=/usr/bin", "GOPS_CONFIG_DIR=/dev/shm"}, env...),
			// kubelet adds fsGroup as a group of the process.
			"user":         map[string]any{"uid": nonroot, "gid": nonroot, "additionalGids": []int{nonroot}},
			"capabilities": map[string]any{"bounding": none, "effective": none, "permitted": none, "inheritable": none},
		},
		"root":   map[string]any{"path": root, "readonly": true},
		"mounts": all,
		"linux": map[string]any{
			"cgroupsPath": "/" + id,
			// Not "network": the containers of a pod share that of this test.
			"namespaces": []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}},
		},
	}
}

func (c *container) output(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(c.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// wait returns the exit code.
func (c *container) wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-c.done:
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%s still runs after %v", c.name, limit)
		return -1
	}
}

// terminate sends SIGTERM, which runc passes on, and returns the exit code. kubelet waits 30 s before it kills.
func (c *container) terminate(t *testing.T) int {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return c.wait(t, 30*time.Second)
}

// running fails the test if the container has ended.
func (c *container) running(t *testing.T) {
	t.Helper()
	select {
	case <-c.done:
		t.Fatalf("%s ended with %d:\n%s", c.name, c.cmd.ProcessState.ExitCode(), c.output(t))
	default:
	}
}
