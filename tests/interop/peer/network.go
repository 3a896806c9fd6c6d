package peer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Network is a network of hosts on this machine. Each host is a network namespace with one link to this program's, which routes
// between them. A pair of hosts can be cut off in one direction, and a host's link can be slow: nobody gets an answer about that,
// as with a broken switch.
type Network struct{ hosts []*Host }

// Host is a network namespace, held by an idle process.
type Host struct {
	Address string
	own     string // this program's address on the link
	device  string
	holder  *exec.Cmd
}

const (
	alone = "INTEROP_NETWORK"
	// Rules of routing with these priorities drop packets, and find local addresses.
	dropping, local = "10", "100"
)

// Alone says whether this program has a network of its own, in which it may make hosts.
func Alone() bool { return os.Getenv(alone) != "" }

// RunAlone runs this program again with these arguments in a network and with mounts of its own. It fails where the system forbids
// that.
func RunAlone(args ...string) *exec.Cmd {
	cmd := exec.Command("unshare", append([]string{"-rnm", os.Args[0]}, args...)...)
	cmd.Env = append(os.Environ(), alone+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// MayBeAlone says whether the system lets this program have a network of its own.
func MayBeAlone() error {
	if out, err := exec.Command("unshare", "-rnm", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("no network of its own: %w: %s", err, out)
	}
	return nil
}

// NewNetwork makes a network with this many hosts, in the network that this program has for itself.
func NewNetwork(hosts int) (*Network, error) {
	err := errors.Join(Loopback(), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600),
		command("ip", "rule", "add", "pref", local, "lookup", "local"), command("ip", "rule", "del", "pref", "0"))
	if err != nil {
		return nil, err
	}
	n := &Network{}
	for i := range hosts {
		h, err := newHost(i + 1)
		if err != nil {
			n.End()
			return nil, err
		}
		n.hosts = append(n.hosts, h)
	}
	return n, nil
}

func newHost(i int) (*Host, error) {
	h := &Host{Address: fmt.Sprintf("10.77.%d.2", i), own: fmt.Sprintf("10.77.%d.1", i), device: fmt.Sprint("host", i)}
	h.holder = exec.Command("unshare", "-n", "sleep", "infinity")
	h.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := h.holder.Start(); err != nil {
		return nil, err
	}
	err := h.entered()
	if err == nil {
		pid := fmt.Sprint(h.holder.Process.Pid)
		err = command("ip", "link", "add", h.device, "type", "veth", "peer", "name", "eth0", "netns", pid)
	}
	if err == nil {
		err = errors.Join(command("ip", "addr", "add", h.own+"/24", "dev", h.device), command("ip", "link", "set", h.device, "up"),
			h.inside("ip", "link", "set", "lo", "up"), h.inside("ip", "addr", "add", h.Address+"/24", "dev", "eth0"),
			h.inside("ip", "link", "set", "eth0", "up"), h.inside("ip", "route", "add", "default", "via", h.own),
			h.inside("ip", "rule", "add", "pref", local, "lookup", "local"), h.inside("ip", "rule", "del", "pref", "0"))
	}
	if err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

// entered waits until the holder is in its namespace, a moment after its start.
func (h *Host) entered() error {
	own, err := os.Readlink("/proc/self/ns/net")
	for range 500 {
		if its, failed := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", h.holder.Process.Pid)); err == nil && failed == nil && its != own {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(errors.New("a host has no network"), err)
}

// Loopback makes this program's own network usable within itself.
func Loopback() error { return command("ip", "link", "set", "lo", "up") }

// Hosts are the hosts of the network.
func (n *Network) Hosts() []*Host { return n.hosts }

// Cut drops what `from` sends to `to`; nil is this program. Packets are dropped where they arrive, and nobody is told.
func (n *Network) Cut(from, to *Host) error { return rule("add", from, to) }

// Heal ends a cut.
func (n *Network) Heal(from, to *Host) error { return rule("del", from, to) }

func rule(verb string, from, to *Host) error {
	args := []string{"ip", "rule", verb, "pref", dropping, "from", "", "to", "", "blackhole"}
	switch {
	case from == nil:
		args[6], args[8] = to.own, to.Address
	case to == nil:
		args[6], args[8] = from.Address, from.own
		return command(args[0], args[1:]...)
	default:
		args[6], args[8] = from.Address, to.Address
	}
	return to.inside(args...)
}

// Slow lets the link of a host carry this many kilobits a second, each way. What is too much waits, and then is dropped.
func (n *Network) Slow(h *Host, kilobits int) error {
	args := []string{"qdisc", "replace", "dev", h.device, "root", "tbf", "rate", fmt.Sprint(kilobits, "kbit"), "burst", "4000", "limit", "60000"}
	err := command("tc", args...)
	args[3] = "eth0"
	return errors.Join(err, h.inside(append([]string{"tc"}, args...)...))
}

// Fast ends Slow.
func (n *Network) Fast(h *Host) error {
	return errors.Join(command("tc", "qdisc", "del", "dev", h.device, "root"), h.inside("tc", "qdisc", "del", "dev", "eth0", "root"))
}

// End removes the hosts.
func (n *Network) End() {
	for _, h := range n.hosts {
		h.end()
	}
}

func (h *Host) end() {
	_ = h.holder.Process.Kill()
	_ = h.holder.Wait()
}

// Run lets the program run on the host from its next start on.
func (h *Host) Run(p *Process) {
	enter := h.enter()
	p.Bin, p.Args = enter[0], append(append(enter[1:], p.Bin), p.Args...)
}

func (h *Host) enter() []string {
	return []string{"nsenter", "-t", fmt.Sprint(h.holder.Process.Pid), "-n"}
}

func (h *Host) inside(args ...string) error {
	all := append(h.enter(), args...)
	return command(all[0], all[1:]...)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
