package main

import (
	"bytes"
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
)

// process is a program that is started, killed and started again.
type process struct {
	name, bin string
	args      []string
	log       string
	cmd       *exec.Cmd
	exited    chan struct{}
}

func (p *process) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.bin, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// How quiet this program's own client is concerns no other.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "ETCD_") || strings.HasPrefix(s, "GOMAXPROCS=")
	})
	// No orphan outlives this program.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	cmd, exited := p.cmd, make(chan struct{})
	p.exited = exited
	go func() { _ = cmd.Wait(); close(exited) }()
	return nil
}

func (p *process) stop(sig syscall.Signal) {
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

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// complaint is the last line of the log about an error, or the last of all.
func (p *process) complaint() string {
	text, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		if low := strings.ToLower(line); strings.Contains(low, "error") || strings.Contains(low, "fatal") || strings.Contains(low, "panic") {
			return line
		}
	}
	return lines[len(lines)-1]
}

// complaints are the lines of the log at level warning or above, and how many lines there are.
func (p *process) complaints() (bad []string, lines int) {
	text, _ := os.ReadFile(p.log)
	for line := range strings.Lines(string(text)) {
		lines++
		low := strings.ToLower(line)
		if strings.Contains(low, "warn") || strings.Contains(low, "level=error") || strings.Contains(low, "panic") || strings.Contains(low, " error ") {
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	return bad, lines
}

// listening waits until something accepts connections at the address.
func (p *process) listening(address string, limit time.Duration) error {
	for began := time.Now(); time.Since(began) < limit; time.Sleep(10 * time.Millisecond) {
		if c, err := net.DialTimeout("tcp", address, time.Second); err == nil {
			c.Close()
			return nil
		}
		if p.ended() {
			return fmt.Errorf("%s ended: %s", p.name, p.complaint())
		}
	}
	return fmt.Errorf("%s does not listen: %s", p.name, p.complaint())
}

// === what the kernel knows ===

// cpu is the time the process has run, in user and system mode together.
func (p *process) cpu() time.Duration {
	if p == nil {
		return 0
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	// The name in front may have blanks; what comes behind it begins with the third field.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	const tick = time.Second / 100
	return time.Duration(user+system) * tick
}

// starved is how long threads of the process could have run, and were not let.
func (p *process) starved() (waited time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	for _, file := range files {
		var ran, delayed int64
		text, _ := os.ReadFile(file)
		_, _ = fmt.Sscan(string(text), &ran, &delayed)
		waited += time.Duration(delayed)
	}
	return waited
}

// memory is what the process has of it, in bytes: now, at most so far, and now without what is a file's.
type memory struct{ rss, peak, anonymous int64 }

func (p *process) memory() (m memory) {
	if p == nil {
		return m
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		var n int64
		for format, to := range map[string]*int64{"VmRSS: %d kB": &m.rss, "VmHWM: %d kB": &m.peak, "RssAnon: %d kB": &m.anonymous} {
			if _, err := fmt.Sscanf(line, format, &n); err == nil {
				*to = n << 10
			}
		}
	}
	return m
}

// load is the machine's load average of the last minute.
func load() (average float64) {
	text, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(text), &average)
	return average
}

var given = struct {
	sync.Mutex
	addresses map[string]bool
}{addresses: map[string]bool{}}

// freePort gives an address below those of outgoing connections, of which one could take it over a restart.
func freePort() string {
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

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
