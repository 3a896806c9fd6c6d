// Package lab makes machines out of namespaces: each has a network, a host name and mounts of its own. Everything runs below
// one process of a PID namespace, so that nothing outlives a lab, however it ends.
//
// A program calls Enter first. The program then starts itself again in up to three roles:
//
//	outer    the process that the user started: makes the namespaces, waits, removes directories and control groups
//	init     process 1 of the PID namespace: collects orphans
//	inside   the program itself
//	machine  holds the namespaces of one machine, see machine.go
package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	roleVariable  = "ISTHMUS_LAB_ROLE"
	stateVariable = "ISTHMUS_LAB_STATE"
	nameVariable  = "ISTHMUS_LAB_NAME"
)

// Enter returns in the role "inside" only. logs is the directory of log files; the state of machines is beside it and is
// removed at the end.
func Enter(logs string) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(outer(logs))
	case "init":
		os.Exit(initProcess())
	case "inside":
		if err := wan(); err != nil {
			fmt.Fprintln(os.Stderr, "the network of the lab:", err)
			os.Exit(1)
		}
	case "machine":
		holdMachine()
	}
}

// State is the directory of everything that ends with the lab.
func State() string { return os.Getenv(stateVariable) }

// Name is a name that no other lab of this machine has.
func Name() string { return os.Getenv(nameVariable) }

func outer(logs string) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the lab makes namespaces and control groups and needs root")
		return 1
	}
	name := fmt.Sprintf("isthmus-lab-%d", os.Getpid())
	state := filepath.Join(filepath.Dir(logs), name)
	for _, dir := range []string{logs, state} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	// The death signal is tied to the thread that starts the child.
	runtime.LockOSThread()
	cmd := again("init", os.Args[1:]...)
	cmd.Env = append(cmd.Env, stateVariable+"="+state, nameVariable+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "namespaces:", err)
		return 1
	}
	// `nsenter --all --target` with this number enters the lab.
	_ = os.WriteFile(filepath.Join(state, "pid"), fmt.Appendln(nil, cmd.Process.Pid), 0o644)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	removeCgroups(name)
	if left := removeState(state); left != nil {
		fmt.Fprintln(os.Stderr, "left behind:", left)
	}
	return exitCode(err)
}

// again prepares this program in another role.
func again(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, roleVariable+"=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, roleVariable+"="+role)
	return cmd
}

func initProcess() int {
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "mounts of the lab:", err)
			return 1
		}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	cmd := again("inside", os.Args[1:]...)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			return 1
		}
		if pid == cmd.Process.Pid {
			if status.Exited() {
				return status.ExitStatus()
			}
			return 128 + int(status.Signal())
		}
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

// removeState retries: the kernel takes the mounts of dead namespaces away in the background.
func removeState(state string) error {
	var err error
	for range 50 {
		if err = os.RemoveAll(state); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}
