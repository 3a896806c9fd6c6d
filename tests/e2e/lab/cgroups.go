package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Control groups are not bound to a namespace here: the lab makes them and removes them.

const cgroups = "/sys/fs/cgroup"

func controllers() []string {
	entries, err := os.ReadDir(cgroups)
	if err != nil {
		return nil
	}
	var dirs []string
	for _, entry := range entries {
		if info, err := os.Stat(filepath.Join(cgroups, entry.Name())); err == nil && info.IsDir() {
			dirs = append(dirs, filepath.Join(cgroups, entry.Name()))
		}
	}
	return dirs
}

// Unified says whether the machine has version 2 of control groups only.
func Unified() bool {
	_, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers"))
	return err == nil
}

// MakeCgroup makes the group of one kubelet, and returns its name as kubelet's cgroupRoot takes it.
func MakeCgroup(machine string) (string, error) {
	group := filepath.Join(Name(), machine)
	roots := controllers()
	if Unified() {
		roots = []string{cgroups}
	}
	for _, root := range roots {
		dir := root
		for _, part := range strings.Split(group, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return "", err
			}
			// A cpuset without processors or memory takes no process.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if content, err := os.ReadFile(filepath.Join(parent, file)); err == nil {
					_ = os.WriteFile(filepath.Join(dir, file), content, 0o644)
				}
			}
		}
	}
	return "/" + group, nil
}

func removeCgroups(name string) {
	roots := append(controllers(), cgroups)
	for range 20 {
		left := 0
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(filepath.Join(root, name), func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs)
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
					left++
				}
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// KillCgroup kills all processes of a group that MakeCgroup made.
func KillCgroup(group string) error {
	root := filepath.Join(cgroups, "pids", group)
	if Unified() {
		root = filepath.Join(cgroups, group)
	}
	return filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return nil // a group that ends meanwhile
		}
		content, _ := os.ReadFile(path)
		for _, field := range strings.Fields(string(content)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return nil
	})
}
