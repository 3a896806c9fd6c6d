//go:build cilium

// Command agents connects many agents to an etcd with Cilium's own client packages: each has the remote cluster's connection of
// Cilium's agent, with its status checks and its guard of the cluster id, and lists and watches the prefixes of an agent. It is
// built inside Cilium's module by tests/interop/cilium/build, and prints what the agents have seen for each line of its input.
//
//	agents ADDRESS NUMBER
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/cilium/cilium/pkg/clustermesh/common"
	"github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/metrics"
)

var prefixes = []string{
	"cilium/state/nodes/v1/", "cilium/state/services/v1/", "cilium/state/identities/v1/id/", "cilium/state/ip/v1/default/",
	"cilium/state/serviceexports/v1/",
}

// pages counts the pages of lists of all agents, and runs their connections.
var pages, runs atomic.Int64

// agent is what an agent does with the connection to a remote cluster.
type agent struct {
	mu    sync.Mutex
	trail map[string]*trail
}

// trail is what an agent was shown of a prefix: whether the first list is complete, and the events since.
type trail struct {
	Listed int
	Synced bool
	Events int
	Sum    uint64
}

func (a *agent) Run(ctx context.Context, backend kvstore.BackendOperations, _ types.CiliumClusterConfig, ready chan<- error) {
	runs.Add(1)
	var all sync.WaitGroup
	for _, prefix := range prefixes {
		events := backend.ListAndWatch(ctx, prefix)
		all.Go(func() {
			for e := range events {
				a.take(prefix, e)
			}
		})
	}
	close(ready)
	all.Wait()
}

func (a *agent) take(prefix string, e kvstore.KeyValueEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.trail[prefix]
	switch {
	case e.Typ == kvstore.EventTypeListDone:
		t.Synced = true
	case !t.Synced:
		t.Listed++
	default:
		t.Events++
		sum := fnv.New64a()
		fmt.Fprintf(sum, "%d %v %s=%s", t.Sum, e.Typ, e.Key, e.Value)
		t.Sum = sum.Sum64()
	}
}

func (a *agent) Stop()                       {}
func (a *agent) Remove(context.Context)      {}
func (a *agent) RevokeCache(context.Context) {}

// countPages counts the requests that read more than one key.
func countPages(ctx context.Context, method string, q, r any, c *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if list, ok := q.(*etcdserverpb.RangeRequest); ok && len(list.RangeEnd) > 0 {
		pages.Add(1)
	}
	return call(ctx, method, q, r, c, opts...)
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(address, number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "agents-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i := range n {
		// An agent has a file for each remote cluster; here each file is an agent.
		file := filepath.Join(dir, fmt.Sprintf("agent-%03d", i))
		if err := os.WriteFile(file, fmt.Appendf(nil, "endpoints:\n- http://%s\n", address), 0o600); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var agents []*agent
	connect := common.DefaultRemoteClientFactory(kvstore.Config{})
	mesh := common.NewClusterMesh(common.Configuration{
		Logger:      slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Config:      common.Config{ClusterMeshConfig: dir},
		ClusterInfo: types.ClusterInfo{ID: 255, Name: "local"},
		Metrics:     common.MetricsProvider(metrics.SubsystemClusterMesh)(),
		RemoteClientFactory: func(ctx context.Context, log *slog.Logger, path string, extra kvstore.ExtraOptions) (kvstore.BackendOperations, chan error) {
			extra.DialOption = append(extra.DialOption, grpc.WithChainUnaryInterceptor(countPages))
			return connect(ctx, log, path, extra)
		},
		NewRemoteCluster: func(string, common.StatusFunc) common.RemoteCluster {
			a := &agent{trail: map[string]*trail{}}
			for _, prefix := range prefixes {
				a.trail[prefix] = &trail{}
			}
			mu.Lock()
			defer mu.Unlock()
			agents = append(agents, a)
			return a
		},
	})
	if err := mesh.Start(context.Background()); err != nil {
		return err
	}
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadString('\n'); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		mu.Lock()
		err := report(agents)
		mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// report prints, for each prefix, the different trails and how many agents have each.
func report(agents []*agent) error {
	type count struct {
		Trail  trail
		Agents int
	}
	all := map[string][]count{}
	for _, a := range agents {
		a.mu.Lock()
		for prefix, t := range a.trail {
			found := false
			for i := range all[prefix] {
				if c := &all[prefix][i]; c.Trail == *t {
					c.Agents++
					found = true
				}
			}
			if !found {
				all[prefix] = append(all[prefix], count{*t, 1})
			}
		}
		a.mu.Unlock()
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"Agents": len(agents), "Pages": pages.Load(), "Runs": runs.Load(), "Trails": all,
	})
}
