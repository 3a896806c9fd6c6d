package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that is started, killed and started again.
type process struct {
	name, bin string
	args      []string
	log       string
	env       []string
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
	p.cmd.Env = append(os.Environ(), p.env...)
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
	if p.exited == nil {
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
	for i := len(lines) - 1; i >= 0; i-- {
		if low := strings.ToLower(lines[i]); strings.Contains(low, "error") || strings.Contains(low, "fatal") || strings.Contains(low, "panic") {
			return lines[i]
		}
	}
	return lines[len(lines)-1]
}

// === what the kernel knows ===

// cpu is the time the process has run, in user and system mode together.
func (p *process) cpu() time.Duration {
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

// memory is what the process has of it, in bytes: now, at most so far, and now without what is a file's.
type memory struct{ rss, peak, anonymous int64 }

func (p *process) memory() (m memory) {
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

// freePort gives an address below those of outgoing connections, of which one could take it over a restart.
func freePort() string {
	for {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10000+rand.IntN(20000)))
		if err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
