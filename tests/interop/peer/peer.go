// Package peer has the helpers that the suites and commands share: programs that are started and killed, the kernel's
// figures about them, and printed tables.
package peer

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Process is a program that is started, killed and started again.
type Process struct {
	Name, Bin string
	Args      []string
	// Log is the path of the file to which both outputs are appended.
	Log string
	// Env is added to this program's environment.
	Env    []string
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts the program.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.Bin, p.Args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// Limits and log levels that this program has for itself must not affect others.
	own := slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "ETCD_") || strings.HasPrefix(s, "GOMAXPROCS=")
	})
	p.cmd.Env = append(own, p.Env...)
	// The program must not outlive this one.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	cmd, exited := p.cmd, make(chan struct{})
	p.exited = exited
	go func() { _ = cmd.Wait(); close(exited) }()
	return nil
}

// Signal sends a signal to the program.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop sends a signal and waits for the end; after 30 s it kills the program.
func (p *Process) Stop(sig syscall.Signal) {
	if p == nil || p.exited == nil {
		return
	}
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// Ended says whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// State is the result of the process, for which it waits.
func (p *Process) State() *os.ProcessState {
	<-p.exited
	return p.cmd.ProcessState
}

// Tail is the last n lines of the log.
func (p *Process) Tail(n int) string {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Complaint is the last line of the log about an error, or the last line.
func (p *Process) Complaint() string { return Complaint(p.Log, "error", "fatal", "panic") }

// Complaint is the last line of a log with one of the words, or the last line.
func Complaint(log string, words ...string) string {
	text, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		low := strings.ToLower(line)
		if slices.ContainsFunc(words, func(word string) bool { return strings.Contains(low, word) }) {
			return line
		}
	}
	return lines[len(lines)-1]
}

// Complaints returns the lines of the log at level warning or above, and the number of all lines.
func (p *Process) Complaints() (bad []string, lines int) {
	text, _ := os.ReadFile(p.Log)
	for line := range strings.Lines(string(text)) {
		lines++
		low := strings.ToLower(line)
		if strings.Contains(low, "warn") || strings.Contains(low, "level=error") || strings.Contains(low, "panic") || strings.Contains(low, " error ") {
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	return bad, lines
}

// Listening waits until something accepts connections at the address.
func (p *Process) Listening(address string, limit time.Duration) error {
	for began := time.Now(); time.Since(began) < limit; time.Sleep(10 * time.Millisecond) {
		if c, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			c.Close()
			return nil
		}
		if p.Ended() {
			return fmt.Errorf("%s ended: %s", p.Name, p.Complaint())
		}
	}
	return fmt.Errorf("%s does not listen: %s", p.Name, p.Complaint())
}

// === figures from the kernel ===

// CPU is the CPU time of the process, in user and system mode together.
func (p *Process) CPU() time.Duration {
	if p == nil {
		return 0
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	// The program's name may contain blanks; the third field follows it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	const tick = time.Second / 100
	return time.Duration(user+system) * tick
}

// Starved is the time that runnable threads of the process waited for a CPU.
func (p *Process) Starved() (waited time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	for _, file := range files {
		var ran, delayed int64
		text, _ := os.ReadFile(file)
		_, _ = fmt.Sscan(string(text), &ran, &delayed)
		waited += time.Duration(delayed)
	}
	return waited
}

// Memory is the resident memory of a process in bytes: now, at most so far, and now without pages of files.
type Memory struct{ RSS, Peak, Anonymous int64 }

// Memory reads the memory of the process.
func (p *Process) Memory() (m Memory) {
	if p == nil {
		return m
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		var n int64
		for format, to := range map[string]*int64{"VmRSS: %d kB": &m.RSS, "VmHWM: %d kB": &m.Peak, "RssAnon: %d kB": &m.Anonymous} {
			if _, err := fmt.Sscanf(line, format, &n); err == nil {
				*to = n << 10
			}
		}
	}
	return m
}

// Load is the machine's load average of the last minute.
func Load() (average float64) {
	text, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(text), &average)
	return average
}

var given = struct {
	sync.Mutex
	addresses map[string]bool
}{addresses: map[string]bool{}}

// FreePort returns an address with a port below the range for outgoing connections, which could take the port during a
// restart.
func FreePort() string {
	given.Lock()
	defer given.Unlock()
	for {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10000+rand.IntN(20000)))
		if err != nil {
			continue
		}
		l.Close()
		if address := l.Addr().String(); !given.addresses[address] {
			given.addresses[address] = true
			return address
		}
	}
}

// PortOf is the port of an address.
func PortOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// === output ===

// Table prints rows with the first column aligned left and the others right.
func Table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	fmt.Println()
	for _, row := range rows {
		for i, cell := range row {
			width := widths[i]
			if i == 0 {
				width = -width
			}
			fmt.Printf("%*s  ", width, cell)
		}
		fmt.Println()
	}
}

func Median[V cmp.Ordered](of []V) V {
	s := slices.Sorted(slices.Values(of))
	return s[len(s)/2]
}

// Read reads everything below a prefix from the server.
func Read(c *clientv3.Client, prefix string) (map[string]string, error) {
	keys := map[string]string{}
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		got, err := c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(5000))
		cancel()
		if err != nil {
			return nil, err
		}
		for _, kv := range got.Kvs {
			keys[string(kv.Key)] = string(kv.Value)
			from = string(kv.Key) + "\x00"
		}
		if !got.More {
			return keys, nil
		}
	}
}
