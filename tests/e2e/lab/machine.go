package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a host: its namespaces, an address in the network of its region, and the processes that run on it.
type Machine struct {
	Name    string
	Address string // in the network of the region
	Dir     string // state of this machine, removed with the lab
	Logs    string

	holder *exec.Cmd
	mu     sync.Mutex
	procs  map[string]*exec.Cmd
}

// run runs a command of the lab itself.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// wan prepares the network between the regions: this process is the router.
func wan() error {
	if err := run("ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// Region makes a network with a gateway, such as 10.13.0.1/16.
func Region(name, gateway string) error {
	for _, args := range [][]string{
		{"link", "add", "name", name, "type", "bridge"},
		{"addr", "add", gateway, "dev", name},
		{"link", "set", "dev", name, "up"},
	} {
		if err := run("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// Route sends a network, such as that of a machine's pods, to an address.
func Route(network, via string) error { return run("ip", "route", "replace", network, "via", via) }

// NewMachine makes a host with an address in the region, such as 10.13.1.243/16, and a route to everything else.
func NewMachine(name, region, address, gateway, logs string) (*Machine, error) {
	ip, _, _ := strings.Cut(address, "/")
	m := &Machine{
		Name: name, Address: ip, Dir: filepath.Join(State(), name), Logs: filepath.Join(logs, name),
		procs: map[string]*exec.Cmd{},
	}
	for _, dir := range []string{m.Dir, m.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := m.hold(); err != nil {
		return nil, fmt.Errorf("namespaces of %s: %w", name, err)
	}
	pid := strconv.Itoa(m.holder.Process.Pid)
	if err := run("ip", "link", "add", "name", outside(name), "type", "veth", "peer", "name", "eth0", "netns", pid); err != nil {
		return nil, err
	}
	if err := run("ip", "link", "set", "dev", outside(name), "master", region, "up"); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "addr", "add", address, "dev", "eth0"},
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "route", "add", "default", "via", gateway},
		{"sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"},
	} {
		if out, err := m.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %v: %w: %s", name, args, err, out)
		}
	}
	return m, nil
}

func (m *Machine) hold() error {
	m.holder = again("machine", m.Name, m.Dir)
	m.holder.Stdout = nil
	out, err := m.holder.StdoutPipe()
	if err != nil {
		return err
	}
	m.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWNET}
	if err := m.holder.Start(); err != nil {
		return err
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return errors.New("the holder ended")
	}
	return nil
}

// holdMachine is the role "machine": its arguments are the machine's name and directory.
func holdMachine() {
	if err := prepareMounts(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "mounts of", os.Args[1]+":", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}

func prepareMounts(name, dir string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	// kubelet wants a shared root, so that the mounts of volumes reach containers.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	for _, empty := range []string{"/run", "/var/log"} {
		if err := unix.Mount("tmpfs", empty, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("%s: %w", empty, err)
		}
	}
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n127.0.1.1 "+name+"\n"), 0o644); err != nil {
		return err
	}
	return unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, "")
}

// Command prepares a command on the machine.
func (m *Machine) Command(name string, args ...string) *exec.Cmd {
	return m.CommandContext(context.Background(), name, args...)
}

// CommandContext prepares a command on the machine that ends with the context.
func (m *Machine) CommandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"-t", strconv.Itoa(m.holder.Process.Pid), "-m", "-n", "-u", "--", name}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// Start runs a service on the machine; its output goes to a log file of its name.
func (m *Machine) Start(name, program string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(m.Logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := m.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s on %s: %w", name, m.Name, err)
	}
	m.mu.Lock()
	m.procs[name] = cmd
	m.mu.Unlock()
	go func() { _ = cmd.Wait() }()
	return nil
}

// Kill ends a service at once, as a loss of power does.
func (m *Machine) Kill(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cmd := m.procs[name]; cmd != nil {
		_ = cmd.Process.Kill()
		delete(m.procs, name)
	}
}

// Alive says whether a service still runs.
func (m *Machine) Alive(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	cmd := m.procs[name]
	return cmd != nil && cmd.Process.Signal(syscall.Signal(0)) == nil
}

// Disconnect takes the network of the machine away.
func (m *Machine) Disconnect() error { return run("ip", "link", "set", "dev", outside(m.Name), "down") }

// outside is the name of the machine's interface on the side of the region. Such names have 15 characters at most.
func outside(machine string) string {
	if len(machine) > 13 {
		machine = machine[:6] + machine[len(machine)-7:]
	}
	return "v-" + machine
}
