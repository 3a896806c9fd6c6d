package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// process is a running server.
type process struct {
	variant
	dir      string
	address  string
	log      *os.File
	cmd      *exec.Cmd
	exited   chan struct{}
	answered time.Duration // since it was started
}

// begin starts a server on a new data directory.
func begin(v variant, dir string) (*process, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	p := &process{variant: v, dir: dir, log: log, address: freePort()}
	url := "http://" + p.address
	p.args = append(slices.Clone(v.args), "--listen-client-urls="+url, "--advertise-client-urls="+url)
	if !v.volatile {
		p.args = append(p.args, "--data-dir="+p.data())
	}
	if v.bin == *etcd {
		peer := "http://" + freePort()
		p.args = append(p.args, "--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	}
	if err := p.start(); err != nil {
		p.remove()
		return nil, err
	}
	return p, nil
}

func (p *process) data() string { return filepath.Join(p.dir, "data") }

// start runs the server and waits for its first answer.
func (p *process) start() error {
	p.cmd = exec.Command(p.bin, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	// However this program is limited, the server is not.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "GOMAXPROCS=") })
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	p.exited = exited
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	go func() { _ = p.cmd.Wait(); close(exited); cancel() }()
	conn, err := p.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("ready")}, grpc.WaitForReady(true)); err != nil {
		p.stop(syscall.SIGKILL)
		return fmt.Errorf("does not answer (%v); its log: %s", status.Code(err), p.complaint())
	}
	p.answered = time.Since(began)
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

// remove ends the server and takes its data away.
func (p *process) remove() {
	p.stop(syscall.SIGKILL)
	p.log.Close()
	os.RemoveAll(p.dir)
}

// complaint is the last line of the log about an error, or the last of all.
func (p *process) complaint() string {
	text, _ := os.ReadFile(p.log.Name())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range slices.Backward(lines) {
		if low := strings.ToLower(line); strings.Contains(low, "error:") || strings.Contains(low, "fatal") || strings.Contains(low, "panic") {
			return line
		}
	}
	return lines[len(lines)-1]
}

func (p *process) dial() (*grpc.ClientConn, error) {
	// It is tried again at once, to see when a server answers first.
	quick := backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}
	return grpc.NewClient(p.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
}

// connect makes that many connections.
func (p *process) connect(n int) ([]pb.KVClient, func(), error) {
	var conns []*grpc.ClientConn
	done := func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
	var kv []pb.KVClient
	for range n {
		conn, err := p.dial()
		if err != nil {
			done()
			return nil, nil, err
		}
		conns = append(conns, conn)
		kv = append(kv, pb.NewKVClient(conn))
	}
	return kv, done, nil
}

// === what the kernel knows ===

// cpu is the time the server has run, in user and system mode together.
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

// memory gives VmRSS and the part of it that is not a file's, in bytes.
func (p *process) memory() (rss, anonymous int64) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		var n int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &n); err == nil {
			rss = n << 10
		} else if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &n); err == nil {
			anonymous = n << 10
		}
	}
	return rss, anonymous
}

// disk is what the data directory takes of the disk, in bytes.
func (p *process) disk() int64 {
	var blocks int64
	_ = filepath.WalkDir(p.data(), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			// Files come and go.
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if info, err := entry.Info(); err == nil {
			blocks += info.Sys().(*syscall.Stat_t).Blocks
		}
		return nil
	})
	return blocks * 512
}

// freePort gives a port below those of outgoing connections, of which one could take it over a restart.
func freePort() string {
	for {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10000+rand.IntN(20000)))
		if err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
}

// syncTime is how long the disk takes to have a little more of a file for good.
func syncTime(dir string) time.Duration {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return 0
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	for range 200 {
		_, _ = f.Write(noise[:4096])
		began := time.Now()
		_ = syscall.Fdatasync(int(f.Fd()))
		took = append(took, time.Since(began))
	}
	return median(took)
}
