package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
)

// scaled chooses between the counts of a small and a full run.
type scaled struct{ Full bool }

func (s scaled) of(small, full int) int {
	if s.Full {
		return full
	}
	return small
}

// order is what the attacking process is told.
type order struct {
	Attack  string
	Address string
	Health  string
	Certs   string
	Seconds float64
	Scale   scaled
	Seed    uint64
}

// outcome is what the attacking process tells at its end.
type outcome struct {
	Notes  []string `json:"notes,omitempty"`
	Failed []string `json:"failed,omitempty"`
}

// attacker is the state of the attacking process.
type attacker struct {
	order
	// ctx ends with the time of the attack. Before `begin` is called, the context ends with the time for preparations.
	ctx    context.Context
	cancel context.CancelFunc
	rng    *rand.Rand

	mu     sync.Mutex
	counts map[string]int
	failed []string
	begun  bool
	held   []net.Conn
	// early lets the attack end before its time, when its work is done.
	early bool
}

// preparations is the time that an attack may take before it begins.
const preparations = 4 * time.Minute

// attackAsOrdered runs in the attacking process: it reads an order and writes "ready" and the outcome as lines.
func attackAsOrdered() error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	a := &attacker{counts: map[string]int{}}
	if err := json.Unmarshal(line, &a.order); err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(r row) bool { return r.name == a.Attack })
	if i < 0 {
		return fmt.Errorf("no attack is named %q", a.Attack)
	}
	a.rng = rand.New(rand.NewPCG(a.Seed, 0))
	a.ctx, a.cancel = context.WithTimeout(context.Background(), preparations)
	if err := rows[i].attack(a); err != nil && !(a.begun && a.ctx.Err() != nil) {
		a.fail("%v", err)
	}
	// An attack that needs no preparations may have ended before it began.
	a.begin()
	if !a.early {
		<-a.ctx.Done()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := outcome{Failed: a.failed}
	for _, name := range slices.Sorted(maps.Keys(a.counts)) {
		out.Notes = append(out.Notes, fmt.Sprintf("%d %s", a.counts[name], name))
	}
	text, err := json.Marshal(out)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(text))
	return err
}

// begin ends the preparations: the measurement and the time of the attack begin. Further calls do nothing.
func (a *attacker) begin() {
	if a.begun {
		return
	}
	a.begun = true
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	a.cancel()
	a.ctx, a.cancel = context.WithTimeout(context.Background(), time.Duration(a.Seconds*float64(time.Second)))
}

// count adds to a figure of the outcome.
func (a *attacker) count(what string, n int) {
	a.mu.Lock()
	a.counts[what] += n
	a.mu.Unlock()
}

// set sets a figure of the outcome.
func (a *attacker) set(what string, n int) {
	a.mu.Lock()
	a.counts[what] = n
	a.mu.Unlock()
}

// fail notes a promise to an honest client that the server broke.
func (a *attacker) fail(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.failed) < 5 {
		a.failed = append(a.failed, fmt.Sprintf(format, args...))
	}
}

// over says whether the time of the attack is over.
func (a *attacker) over() bool { return a.ctx.Err() != nil }

// rest waits, at most until the end of the attack.
func (a *attacker) rest(d time.Duration) {
	select {
	case <-a.ctx.Done():
	case <-time.After(d):
	}
}

// each runs n workers again and again until the attack is over. Errors of workers are counted.
func (a *attacker) each(n int, work func(i int) error) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			for !a.over() {
				if err := work(i); err != nil && !a.over() {
					a.count("× "+short(err), 1)
					a.rest(20 * time.Millisecond)
				}
			}
		})
	}
	group.Wait()
}

// short is an error without numbers and addresses, to count equal errors.
func short(err error) string {
	text := err.Error()
	var op interface{ Unwrap() error }
	for errors.As(err, &op) {
		inner := op.Unwrap()
		if inner == nil {
			break
		}
		err = inner
		text = err.Error()
	}
	if i := strings.LastIndex(text, "desc = "); i >= 0 {
		text = text[i+len("desc = "):]
	}
	text = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
	return text[:min(60, len(text))]
}

// grpc connects with grpc-go. The connection ends with the process.
func (a *attacker) grpc(common string, options ...grpc.DialOption) *grpc.ClientConn {
	conn, err := dialAs(a.Address, a.Certs, common, options...)
	if err != nil {
		panic(err)
	}
	return conn
}

// h2 connects with raw HTTP/2.
func (a *attacker) h2(common string, o h2options) (*h2, error) {
	c, err := dialH2(a.ctx, a.Address, a.Certs, common, o)
	if err == nil {
		a.count("connections", 1)
	}
	return c, err
}

// === the parent's side ===

// assault is a running attacking process.
type assault struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Reader

	mu      sync.Mutex
	stopped string // why the attack was stopped
}

// startAssault starts the attacking process and waits until its preparations are done. The process has a low priority: on a
// real network, attackers do not take the CPU of the server and of honest clients.
func startAssault(self string, o order) (*assault, error) {
	s := &assault{cmd: exec.Command("nice", "-n", "10", self, "-attack")}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.lines = bufio.NewReader(out)
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	if _, err := s.in.Write(append(text, '\n')); err != nil {
		return nil, err
	}
	watchdog := time.AfterFunc(preparations+time.Minute, func() { _ = s.cmd.Process.Kill() })
	defer watchdog.Stop()
	if line, err := s.lines.ReadString('\n'); err != nil || line != "ready\n" {
		s.kill()
		return nil, fmt.Errorf("the attacker ended: %q %w", line, err)
	}
	return s, nil
}

// release lets the attack begin and waits for its outcome. An attacker that does not end in time is killed.
func (s *assault) release(limit time.Duration) (out outcome) {
	_, _ = s.in.Write([]byte("\n"))
	watchdog := time.AfterFunc(limit, func() { s.stop("attacker killed at its time limit") })
	defer watchdog.Stop()
	line, err := s.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &out)
	}
	if err != nil {
		s.mu.Lock()
		out.Notes = append(out.Notes, cmp.Or(s.stopped, "the attacker ended: "+err.Error()))
		s.mu.Unlock()
	}
	s.kill()
	return out
}

// stop ends the attack before its time.
func (s *assault) stop(why string) {
	s.mu.Lock()
	s.stopped = cmp.Or(s.stopped, why)
	s.mu.Unlock()
	_ = s.cmd.Process.Kill()
}

func (s *assault) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}
