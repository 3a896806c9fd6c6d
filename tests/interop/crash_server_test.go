package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/interop/peer"
)

// crashServer is a server that is killed and started again with the same address and data directory. If the server runs
// under `faults`, unsynced changes of files can be undone after a kill.
type crashServer struct {
	*server
	bin    string
	args   []string
	root   string
	faults string
	strict bool
	// faulty says that the running process is under `faults`.
	faulty bool
}

func newCrashServer(t *testing.T, root string) *crashServer {
	address := peer.FreePort()
	url := "http://" + address
	m := &crashServer{server: &server{&peer.Process{}, address}, root: root, strict: *crashStrict}
	if err := os.MkdirAll(m.tree(), 0o700); err != nil {
		t.Fatal(err)
	}
	if *crashPeer {
		peerURL := "http://" + peer.FreePort()
		m.Name, m.bin = "etcd", peerBin(t, "etcd")
		m.args = []string{
			"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=default=" + peerURL,
			"--heartbeat-interval=10", "--election-timeout=100", "--log-level=warn",
		}
		// etcd does not sync the directory of its database and relies on the file system's journal.
		m.strict = false
	} else {
		m.Name, m.bin = "isthmus", isthmusBin(t)
		m.args = []string{"etcd", "--data-engine=" + *crashEngine, "--durability=" + *crashMode}
	}
	m.args = append(m.args, strings.Fields(*crashArgs)...)
	m.args = append(m.args, "--data-dir="+filepath.Join(m.tree(), "data"), "--listen-client-urls="+url, "--advertise-client-urls="+url)
	if *crashFaults {
		m.faults = compileFaults(t, root)
	}
	m.Log = filepath.Join(root, m.Name+".log")
	t.Cleanup(m.kill)
	return m
}

// compileFaults builds the file layer that loses writes. Where the kernel does not allow the layer, the path is empty.
func compileFaults(t *testing.T, dir string) string {
	t.Helper()
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	bin := filepath.Join(dir, "faults")
	if out, err := exec.Command(cc, "-O2", "-Wall", "-o", bin, "faults/faults.c").CombinedOutput(); err != nil {
		t.Fatalf("faults.c: %v\n%s", err, out)
	}
	probe := exec.Command(bin, "true")
	probe.Env = append(os.Environ(), "FAULTS_DIR="+dir, "FAULTS_JOURNAL="+filepath.Join(dir, "probe"), "FAULTS_SIDE="+filepath.Join(dir, "probed"))
	if out, err := probe.CombinedOutput(); err != nil {
		t.Logf("this kernel does not allow to intercept system calls: %v\n%s", err, out)
		return ""
	}
	return bin
}

func (m *crashServer) tree() string    { return filepath.Join(m.root, "tree") }
func (m *crashServer) side() string    { return filepath.Join(m.root, "side") }
func (m *crashServer) journal() string { return filepath.Join(m.root, "journal") }
func (m *crashServer) full() string    { return filepath.Join(m.root, "full") }

// launch starts the server, under `faults` if it is wanted and possible.
func (m *crashServer) launch(faulty bool) error {
	m.faulty = faulty && m.faults != ""
	m.Bin, m.Args, m.Env = m.bin, m.args, nil
	if m.faulty {
		m.Bin, m.Args = m.faults, append([]string{m.bin}, m.args...)
		m.Env = []string{"FAULTS_DIR=" + m.tree(), "FAULTS_JOURNAL=" + m.journal(), "FAULTS_SIDE=" + m.side(), "FAULTS_ENOSPC=" + m.full()}
		if m.strict {
			m.Env = append(m.Env, "FAULTS_STRICT=1")
		}
	}
	return m.Start()
}

// kill ends the process and waits until the journal, if there is one, is complete.
func (m *crashServer) kill() {
	if m.Exited() == nil {
		return
	}
	signal := syscall.SIGKILL
	if m.faulty {
		signal = syscall.SIGTERM // faults kills the server with SIGKILL
	}
	_ = m.Signal(signal)
	<-m.Exited()
}

// lose undoes unsynced changes, and removes the journal.
func (m *crashServer) lose(l *loss) error {
	if err := l.apply(m.journal()); err != nil {
		return err
	}
	return firstError(os.RemoveAll(m.journal()), os.RemoveAll(m.side()))
}

// quick makes clients reconnect to a restarted server without delay.
var quick = []grpc.DialOption{
	grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.2, MaxDelay: 20 * time.Millisecond},
		MinConnectTimeout: time.Second,
	}),
}

// answers waits for the first answer and returns its header, and the time since began.
func (m *crashServer) answers(began time.Time) (*pb.ResponseHeader, time.Duration, error) {
	c, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		select {
		case <-m.Exited():
			cancel()
		case <-c.Done():
		}
	}()
	conn, err := grpc.NewClient(m.address, append(quick, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	for {
		r, err := pb.NewKVClient(conn).Range(c, &pb.RangeRequest{Key: []byte("ready")}, grpc.WaitForReady(true))
		if err == nil {
			return r.Header, time.Since(began), nil
		}
		if m.Ended() {
			return nil, 0, fmt.Errorf("%s ended while it started: %v", m.Name, m.State())
		}
		if c.Err() != nil {
			return nil, 0, fmt.Errorf("%s does not answer: %w", m.Name, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *crashServer) quickClient(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{m.address}, DialTimeout: patience, DialOptions: quick})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
