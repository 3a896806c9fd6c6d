// Package interop compares Isthmus with the programs that it replaces: etcd 3.7 with its tools and clients, and Cilium's
// clustermesh-apiserver. The Makefile builds these peers from pinned modules and passes their places in variables:
// ISTHMUS_BIN, and PEERS_BIN (a directory with etcd, etcdctl and etcdutl). tests/README.md lists the suites.
//
// harness_test.go has the helpers of all suites: servers, clients, and waiting.
package interop

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/interop/peer"
)

// patience is how long a condition may take to hold: long enough for a loaded machine.
const patience = 60 * time.Second

// server is a running store: etcd or Isthmus.
type server struct {
	*peer.Process
	address string
}

// peerBin is the path of a program of the peers. The test is skipped where they are not built.
func peerBin(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("PEERS_BIN")
	if dir == "" {
		t.Skip("PEERS_BIN is not set: run `make interop`")
	}
	return filepath.Join(dir, name)
}

// isthmusBin is the path of the binary under test. The test is skipped where it is not named.
func isthmusBin(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("ISTHMUS_BIN")
	if bin == "" {
		t.Skip("ISTHMUS_BIN is not set: run `make interop`")
	}
	return bin
}

// ours starts Isthmus with the subcommand etcd.
func ours(t testing.TB, args ...string) *server {
	t.Helper()
	return start(t, "isthmus", isthmusBin(t), append([]string{"etcd"}, args...))
}

// theirs starts the real etcd.
func theirs(t testing.TB, args ...string) *server {
	t.Helper()
	dir := t.TempDir()
	peerURL := "http://" + peer.FreePort()
	args = append([]string{
		"--data-dir=" + dir, "--unsafe-no-fsync", "--listen-peer-urls=" + peerURL,
		"--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=default=" + peerURL,
	}, args...)
	return start(t, "etcd", peerBin(t, "etcd"), args)
}

// start starts a server on a free port, and waits until it answers. The server ends with the test.
func start(t testing.TB, name, bin string, args []string) *server {
	t.Helper()
	address := peer.FreePort()
	url := "http://" + address
	args = append(args, "--listen-client-urls="+url, "--advertise-client-urls="+url)
	s := &server{process(t, name, bin, args...), address}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, name+" answers", func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false
		}
		conn.Close()
		c := s.client(t)
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = c.Get(ctx, "ready")
		return err == nil
	})
	return s
}

// process prepares a process that does not run yet and ends with the test. If the test fails, it prints the end of the
// log.
func process(t testing.TB, name, bin string, args ...string) *peer.Process {
	t.Helper()
	p := &peer.Process{Name: name, Bin: bin, Args: args, Log: filepath.Join(t.TempDir(), name+".log")}
	t.Cleanup(func() {
		p.Stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("last lines of %s:\n%s", name, p.Tail(20))
		}
	})
	return p
}

func (s *server) client(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.address}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *server) dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// eventually waits until the check succeeds, and fails the test after `patience`.
func eventually(t testing.TB, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if check() {
			return
		}
	}
	t.Fatalf("waited %v in vain: %s", patience, what)
}

// run runs a tool of the peers and returns its output.
func run(t testing.TB, tool string, args ...string) string {
	t.Helper()
	out, err := exec.Command(peerBin(t, tool), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return string(out)
}

// outcomeOf is the result of a call that returns a value or an error.
type outcomeOf[T any] struct {
	value T
	err   error
}

// try takes the result of a call: try(client.Put(…)).or(t).
func try[T any](value T, err error) outcomeOf[T] { return outcomeOf[T]{value, err} }

// or returns the value, or fails the test with the error.
func (o outcomeOf[T]) or(t testing.TB) T {
	t.Helper()
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.value
}

// ctx is a context for the calls of a test, which ends after `patience`.
func ctx(t testing.TB) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return c
}
