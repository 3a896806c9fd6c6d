package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"isthmus.dev/interop/peer"
)

// process is a running server.
type process struct {
	variant
	peer.Process
	dir      string
	address  string
	answered time.Duration // since it was started
}

// begin starts a server on a new data directory.
func begin(v variant, dir string) (*process, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &process{variant: v, dir: dir, address: peer.FreePort()}
	p.Process = peer.Process{Name: v.name, Bin: v.bin, Log: filepath.Join(dir, "log")}
	url := "http://" + p.address
	p.Args = append(slices.Clone(v.args), "--listen-client-urls="+url, "--advertise-client-urls="+url)
	if !v.volatile {
		p.Args = append(p.Args, "--data-dir="+p.data())
	}
	if v.bin == *etcd {
		other := "http://" + peer.FreePort()
		p.Args = append(p.Args, "--listen-peer-urls="+other, "--initial-advertise-peer-urls="+other, "--initial-cluster=default="+other)
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
	began := time.Now()
	if err := p.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	go func() { <-p.Exited(); cancel() }()
	conn, err := p.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("ready")}, grpc.WaitForReady(true)); err != nil {
		p.Stop(syscall.SIGKILL)
		return fmt.Errorf("does not answer (%v); its log: %s", status.Code(err), p.complaint())
	}
	p.answered = time.Since(began)
	return nil
}

// remove ends the server and deletes its data.
func (p *process) remove() {
	p.Stop(syscall.SIGKILL)
	os.RemoveAll(p.dir)
}

// complaint is the last line of the log about an error, or the last line.
func (p *process) complaint() string { return peer.Complaint(p.Log, "error:", "fatal", "panic") }

func (p *process) dial() (*grpc.ClientConn, error) {
	// The client retries at once, to measure the time of the first answer.
	quick := backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}
	return grpc.NewClient(p.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
}

// connect makes n connections.
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

// disk is the disk usage of the data directory, in bytes.
func (p *process) disk() int64 {
	var blocks int64
	_ = filepath.WalkDir(p.data(), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			// A file may disappear during the walk.
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

// syncTime is the time that the disk takes to sync a small append to a file.
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
	return peer.Median(took)
}
