package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/interop/peer"
)

// fixture is the state of a server before an attack.
type fixture struct {
	// descriptors limits the file descriptors of the server; 0 keeps the limit of this process.
	descriptors int
	// big fills the prefix big/ with 500-byte values: 50 MB in full scale.
	big bool
	// leased attaches 100,000 keys (small: 20,000) to the lease `leasedID`. The keys are attached before authentication is on,
	// because the check of all keys at each put would take minutes.
	leased bool
	// plain serves without TLS and authentication.
	plain bool
	// serve starts the subcommand `serve` of Isthmus instead of `etcd`.
	serve bool
	// isthmus are more arguments for Isthmus alone.
	isthmus string
}

// target is a running server with users and keys.
type target struct {
	peer.Process
	fixture
	address, health string
	certs           string
	dir             string
	admin           string // common name of the administrator
}

const (
	password = "correct horse"
	leasedID = 4242
)

// startTarget starts a server on an empty data directory and prepares the fixture. `bin` is etcd if `etcd` is true.
func startTarget(bin string, etcd bool, f fixture, certs, dir string, n scaled) (*target, error) {
	t := &target{fixture: f, address: peer.FreePort(), certs: certs, dir: dir, admin: "root"}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	url, secure := "https://"+t.address, serverFlags(certs)
	if f.plain {
		url, secure, t.certs = "http://"+t.address, nil, ""
	}
	// The disk is not measured: neither server waits for it.
	args := append(secure, "--listen-client-urls="+url, "--data-dir="+filepath.Join(dir, "data"))
	switch {
	case etcd:
		other := "http://" + peer.FreePort()
		args = append(args, "--advertise-client-urls="+url, "--unsafe-no-fsync", "--listen-peer-urls="+other,
			"--initial-advertise-peer-urls="+other, "--initial-cluster=default="+other, "--log-level=error")
	case f.serve:
		manifests := filepath.Join(dir, "manifests")
		if err := os.MkdirAll(manifests, 0o700); err != nil {
			return nil, err
		}
		t.admin, t.health = "admin-isthmus", peer.FreePort()
		args = append([]string{"serve", "--cluster-name=isthmus", "--cluster-id=1", "--manifests=" + manifests, "--durability=none",
			"--api-serve-addr=", "--health-port=" + peer.PortOf(t.health)}, args...)
	default:
		args = append([]string{"etcd", "--advertise-client-urls=" + url, "--unsafe-no-fsync"}, args...)
	}
	if !etcd && f.isthmus != "" {
		args = append(args, f.isthmus)
	}
	t.Process = peer.Process{Name: "server", Bin: bin, Args: args, Log: filepath.Join(dir, "log")}
	if f.descriptors > 0 {
		limit := fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, f.descriptors)
		t.Bin, t.Args = "/bin/sh", append([]string{"-c", limit, bin}, args...)
	}
	if err := t.Start(); err != nil {
		return nil, err
	}
	if err := t.prepare(n); err != nil {
		t.remove()
		return nil, fmt.Errorf("%w; log: %s", err, t.Complaint())
	}
	return t, nil
}

// prepare waits until the server answers, then makes the users and keys.
func (t *target) prepare(n scaled) error {
	// gRPC would wait a second after a connection that was refused.
	if err := t.Listening(t.address, time.Minute); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	go func() {
		select {
		case <-t.Exited():
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := dialAs(t.address, t.certs, t.admin)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("ready")}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("the server does not answer: %w", err)
	}
	if t.serve {
		return nil
	}
	if t.big {
		if err := fill(ctx, conn, "big/", n.of(20_000, 100_000), 500); err != nil {
			return fmt.Errorf("cannot fill the server: %w", err)
		}
	}
	if t.leased {
		if err := leaseKeys(ctx, conn, n.of(20_000, 100_000)); err != nil {
			return fmt.Errorf("cannot attach keys to a lease: %w", err)
		}
	}
	if t.plain {
		return nil
	}
	return makeUsers(ctx, conn)
}

// makeUsers makes the users and turns authentication on.
func makeUsers(ctx context.Context, conn *grpc.ClientConn) error {
	auth := pb.NewAuthClient(conn)
	var failed error
	do := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	role := func(name string, permission authpb.Permission_Type, prefixes ...string) {
		_, err := auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: name})
		do(err)
		for _, p := range prefixes {
			_, err = auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: name, Perm: &authpb.Permission{
				PermType: permission, Key: []byte(p), RangeEnd: endOf(p),
			}})
			do(err)
		}
	}
	user := func(name, password string, roles ...string) {
		options := &authpb.UserAddOptions{NoPassword: password == ""}
		_, err := auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: password, Options: options})
		do(err)
		for _, r := range roles {
			_, err = auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: r})
			do(err)
		}
	}
	_, err := auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "root"})
	do(err)
	role("reader", authpb.READ, "big/", "w/")
	role("writer", authpb.READWRITE, "big/", "w/", "honest/")
	role("innocent", authpb.READWRITE, "innocent/")
	user("root", "", "root")
	user("reader", "", "reader")
	user("writer", "", "writer")
	user("innocent", "", "innocent")
	user("roleless", "")
	user("login", password, "innocent")
	if failed != nil {
		return failed
	}
	_, err = auth.AuthEnable(ctx, &pb.AuthEnableRequest{})
	return err
}

// fill puts n keys below the prefix, in transactions of 100 keys, eight at once.
func fill(ctx context.Context, conn *grpc.ClientConn, prefix string, n, size int) error {
	kv := pb.NewKVClient(conn)
	const batch = 100
	var (
		group  sync.WaitGroup
		once   sync.Once
		failed error
		starts = make(chan int)
	)
	for range 8 {
		group.Go(func() {
			for start := range starts {
				txn := &pb.TxnRequest{}
				for i := start; i < min(start+batch, n); i++ {
					put := &pb.PutRequest{Key: fmt.Appendf(nil, "%s%08d", prefix, i), Value: noise(i, size)}
					txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
				}
				if _, err := kv.Txn(ctx, txn); err != nil {
					once.Do(func() { failed = err })
				}
			}
		})
	}
	for start := 0; start < n; start += batch {
		starts <- start
	}
	close(starts)
	group.Wait()
	return failed
}

// endOf is the end of the range of all keys with the prefix.
func endOf(prefix string) []byte { return []byte(clientv3.GetPrefixRangeEnd(prefix)) }

var pattern = func() []byte {
	b, x := make([]byte, 4<<20), uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}()

// noise is a value of that size which differs from its neighbours.
func noise(i, size int) []byte {
	at := i * 131 % (len(pattern) - size)
	return slices.Clone(pattern[at : at+size])
}

// dialAs connects with the certificate of the common name, or without TLS if there are no certificates.
func dialAs(address, certs, common string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	security := insecure.NewCredentials()
	if certs != "" {
		config, err := clientTLS(certs, common, "h2")
		if err != nil {
			return nil, err
		}
		security = credentials.NewTLS(config)
	}
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(security), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<31-1), grpc.MaxCallSendMsgSize(1<<31-1)),
	}, options...)
	return grpc.NewClient("passthrough:///"+address, options...)
}

// resetPeak makes the kernel forget the peak of the resident memory.
func (t *target) resetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", t.PID()), []byte("5"), 0)
}

// remove ends the server and deletes its data.
func (t *target) remove() {
	t.Stop(syscall.SIGKILL)
	os.RemoveAll(t.dir)
}
