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
	faulty bool
	exited chan struct{}
}

func newCrashServer(t *testing.T, root string) *crashServer {
	address := lowPort(t)
	url := "http://" + address
	m := &crashServer{server: &server{name: "isthmus", address: address}, bin: os.Getenv("ISTHMUS_BIN"), root: root, strict: *crashStrict}
	if err := os.MkdirAll(m.tree(), 0o700); err != nil {
		t.Fatal(err)
	}
	if *crashPeer {
		peerURL := "http://" + lowPort(t)
		m.name, m.bin = "etcd", peer(t, "etcd")
		m.args = []string{
			"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=default=" + peerURL,
			"--heartbeat-interval=10", "--election-timeout=100", "--log-level=warn",
		}
		// etcd does not sync the directory of its database and relies on the file system's journal.
		m.strict = false
	} else {
		if m.bin == "" {
			t.Skip("ISTHMUS_BIN is not set: run `make interop`")
		}
		m.args = []string{"etcd", "--data-engine=" + *crashEngine, "--durability=" + *crashMode}
	}
	m.args = append(m.args, strings.Fields(*crashArgs)...)
	m.args = append(m.args, "--data-dir="+filepath.Join(m.tree(), "data"), "--listen-client-urls="+url, "--advertise-client-urls="+url)
	if *crashFaults {
		m.faults = compileFaults(t, root)
	}
	log, err := os.Create(filepath.Join(root, m.name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	m.log = log
	t.Cleanup(func() { m.kill(); log.Close() })
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

func (m *crashServer) launch(faulty bool) error {
	faulty = faulty && m.faults != ""
	m.faulty = faulty
	m.cmd = exec.Command(m.bin, m.args...)
	if faulty {
		m.cmd = exec.Command(m.faults, append([]string{m.bin}, m.args...)...)
		m.cmd.Env = append(os.Environ(), "FAULTS_DIR="+m.tree(), "FAULTS_JOURNAL="+m.journal(), "FAULTS_SIDE="+m.side(), "FAULTS_ENOSPC="+m.full())
		if m.strict {
			m.cmd.Env = append(m.cmd.Env, "FAULTS_STRICT=1")
		}
	}
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	cmd := m.cmd
	go func() { _ = cmd.Wait(); close(exited) }()
	m.exited = exited
	return nil
}

func (m *crashServer) dead() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// kill ends the process and waits until the journal, if there is one, is complete.
func (m *crashServer) kill() {
	if m.exited == nil {
		return
	}
	signal := syscall.SIGKILL
	if m.faulty {
		signal = syscall.SIGTERM // faults kills the server with SIGKILL
	}
	_ = m.cmd.Process.Signal(signal)
	<-m.exited
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
		case <-m.exited:
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
		if m.dead() {
			return nil, 0, fmt.Errorf("%s ended while it started: %v", m.name, m.cmd.ProcessState)
		}
		if c.Err() != nil {
			return nil, 0, fmt.Errorf("%s does not answer: %w", m.name, err)
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
