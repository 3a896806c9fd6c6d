package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"isthmus.dev/interop/peer"
)

// Two addresses lead into a namespace: the mirror's, which is cut off, and this program's, through which sources are
// still written.
const (
	mirrorsWay = "10.99.0."
	ownWay     = "10.98.0."
	// The number of sources that are cut off.
	cutOff = 3
)

// namespace is a network namespace, held by an idle process.
type namespace struct{ holder *exec.Cmd }

func newNamespace() (*namespace, error) {
	holder := exec.Command("unshare", "-n", "sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		return nil, err
	}
	n := &namespace{holder}
	pid := fmt.Sprint(holder.Process.Pid)
	var err error
	for range 100 {
		// The process enters its namespace a moment after its start.
		if err = command("ip", "link", "add", "mirrors", "type", "veth", "peer", "name", "mirrors", "netns", pid); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		n.end()
		return nil, fmt.Errorf("partitions need a network of their own: run it all with unshare -rn: %w", err)
	}
	err = errors.Join(command("ip", "link", "set", "lo", "up"), n.inside("ip", "link", "set", "lo", "up"),
		command("ip", "link", "add", "own", "type", "veth", "peer", "name", "own", "netns", pid))
	for device, way := range map[string]string{"mirrors": mirrorsWay, "own": ownWay} {
		err = errors.Join(err, command("ip", "addr", "add", way+"1/24", "dev", device), command("ip", "link", "set", device, "up"),
			n.inside("ip", "addr", "add", way+"2/24", "dev", device), n.inside("ip", "link", "set", device, "up"))
	}
	if err != nil {
		n.end()
	}
	return n, err
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (n *namespace) enter() []string {
	return []string{"nsenter", "-t", fmt.Sprint(n.holder.Process.Pid), "-n"}
}

func (n *namespace) inside(args ...string) error {
	all := append(n.enter(), args...)
	return command(all[0], all[1:]...)
}

// cut drops the mirror's packets without an answer.
func (n *namespace) cut() error {
	out, err := n.output("ip", "-o", "link", "show", "mirrors")
	if err != nil {
		return err
	}
	_, address, found := strings.Cut(out, "link/ether ")
	if !found {
		return fmt.Errorf("no address in %q", out)
	}
	return errors.Join(
		command("ip", "neigh", "replace", mirrorsWay+"2", "lladdr", strings.Fields(address)[0], "dev", "mirrors", "nud", "permanent"),
		n.inside("ip", "addr", "del", mirrorsWay+"2/24", "dev", "mirrors"))
}

func (n *namespace) output(args ...string) (string, error) {
	all := append(n.enter(), args...)
	out, err := exec.Command(all[0], all[1:]...).Output()
	return string(out), err
}

func (n *namespace) heal() error {
	return n.inside("ip", "addr", "add", mirrorsWay+"2/24", "dev", "mirrors")
}

func (n *namespace) end() {
	_ = n.holder.Process.Kill()
	_ = n.holder.Wait()
}

// partition cuts some sources off for a while, under writes.
func partition(dir string, ca *authority) error {
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	defer ns.end()
	var cut []*source
	r, end, err := mirrored(dir, ca, func(s *source) {
		if len(cut) < cutOff {
			s.behind = ns
			s.address = mirrorsWay + "2:" + peer.PortOf(s.address)
			cut = append(cut, s)
		}
	})
	defer func() { end() }()
	if err != nil {
		return err
	}
	w := write0(r)
	defer w.stop()
	time.Sleep(5 * time.Second)
	r.watcher.begin()
	before := peer.Load()
	if err := ns.cut(); err != nil {
		return err
	}
	began := time.Now()
	noticed := time.Duration(0)
	for time.Since(began) < *away {
		time.Sleep(200 * time.Millisecond)
		all, err := r.status()
		if err != nil {
			return err
		}
		lost := 0
		for _, s := range all {
			if s.Name <= cut[len(cut)-1].name && !s.Ready {
				lost++
			}
		}
		if lost == len(cut) && noticed == 0 {
			noticed = time.Since(began)
			progress("%d of them are not connected after %v", lost, since(began))
		}
	}
	if noticed == 0 {
		finding("partition: not noticed in %v", *away)
	}
	if n := r.failures(); n != 0 {
		finding("partition: %d connections of other sources were lost", n)
	}
	during := r.watcher.now()
	if err := ns.heal(); err != nil {
		return err
	}
	healed := time.Now()
	w.held.Lock()
	var wrong []string
	for time.Since(healed) < time.Minute {
		if wrong = r.watcher.differs(1); len(wrong) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(healed)
	w.held.Unlock()
	if len(wrong) > 0 {
		wrong = r.watcher.differs(0)
		finding("partition: %v after its end %d differences: %s", since(healed), len(wrong), strings.Join(wrong[:min(4, len(wrong))], "; "))
	}
	w.stop()
	verify(r, "partition", 10*time.Second)
	now := r.watcher.now()
	peer.Table([][]string{
		{"partition", "load", "away s", "noticed after s", "equal after s", "changed", "of these after it", "written again", "deleted", "wrongly"},
		{r.shape, fmt.Sprintf("%.1f-%.1f", before, peer.Load()), inSeconds(*away), inSeconds(noticed), inSeconds(took), fmt.Sprint(now.puts), fmt.Sprint(now.puts - during.puts),
			fmt.Sprint(now.same), fmt.Sprint(now.gone), fmt.Sprint(now.wronged)},
	})
	if now.wronged+now.same > 0 {
		finding("partition: %d wrong deletes, %d redundant writes: %s", now.wronged, now.same, strings.Join(now.examples, "; "))
	}
	complain(r)
	return nil
}
