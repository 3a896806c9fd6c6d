//go:build cilium

// Command reader reads a remote cluster with the packages of Cilium's agent, and serves what they made of it as JSON:
//
//	reader STORE_ADDRESS CLUSTER LISTEN_ADDRESS
//
// It is built inside of Cilium's sources (tests/interop/cilium/build).
package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/cilium/cilium/pkg/clustermesh/clustercfg"
	servicestore "github.com/cilium/cilium/pkg/clustermesh/store"
	cmtypes "github.com/cilium/cilium/pkg/clustermesh/types"
	"github.com/cilium/cilium/pkg/identity/key"
	"github.com/cilium/cilium/pkg/ipcache"
	"github.com/cilium/cilium/pkg/kvstore"
	"github.com/cilium/cilium/pkg/kvstore/store"
	nodestore "github.com/cilium/cilium/pkg/node/store"
	"github.com/cilium/cilium/pkg/source"
)

// state is what the packages have read.
type state struct {
	mutex sync.Mutex
	// Address → namespace of the pod.
	Addresses map[string]string
	// Number → labels.
	Identities map[string]string
	Nodes      map[string]bool
	Services   map[string]bool
	Config     cmtypes.CiliumClusterConfig
	Synced     bool
	Problems   []string
}

func (s *state) with(f func()) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	f()
}

// === warnings and errors of the packages ===

type handler struct {
	slog.Handler
	state *state
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	h.state.with(func() { h.state.Problems = append(h.state.Problems, text) })
	return nil
}

func (h *handler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *handler) WithGroup(string) slog.Handler      { return h }

// === what the packages tell ===

func (s *state) Upsert(ip string, _ net.IP, _ uint8, meta *ipcache.K8sMetadata, _ ipcache.Identity) (bool, error) {
	namespace := ""
	if meta != nil {
		namespace = meta.Namespace
	}
	s.with(func() { s.Addresses[ip] = namespace })
	return false, nil
}

func (s *state) Delete(ip string, _ source.Source) bool {
	s.with(func() { delete(s.Addresses, ip) })
	return false
}

// observer keeps the names of one kind.
type observer struct {
	state *state
	names map[string]bool
}

func (o observer) OnUpdate(k store.Key) { o.state.with(func() { o.names[k.GetKeyName()] = true }) }
func (o observer) OnDelete(k store.NamedKey) {
	o.state.with(func() { delete(o.names, k.GetKeyName()) })
}

func main() {
	address, cluster, listen := os.Args[1], os.Args[2], os.Args[3]
	s := &state{Addresses: map[string]string{}, Identities: map[string]string{}, Nodes: map[string]bool{}, Services: map[string]bool{}}
	logger := slog.New(&handler{slog.DiscardHandler, s})
	ctx := context.Background()
	go s.follow(ctx, logger, address, cluster)
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.with(func() { _ = json.NewEncoder(w).Encode(s) })
	})
	slog.Error("ended", "error", http.ListenAndServe(listen, nil))
	os.Exit(1)
}

func (s *state) follow(ctx context.Context, logger *slog.Logger, address, cluster string) {
	backend, problems := kvstore.NewClient(ctx, logger, kvstore.EtcdBackendName,
		map[string]string{kvstore.EtcdAddrOption: "http://" + address},
		kvstore.ExtraOptions{ClusterName: cluster, NoLockQuorumCheck: true, NoEndpointStatusChecks: true})
	if err := <-problems; err != nil {
		s.with(func() { s.Problems = append(s.Problems, err.Error()) })
		return
	}
	config, err := clustercfg.Get(ctx, cluster, backend)
	s.with(func() {
		if s.Config = config; err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	})
	factory := store.NewFactory(logger, store.MetricsProvider())
	prefix := func(state string) string {
		if config.Capabilities.Cached {
			state = kvstore.StateToCachePrefix(state)
		}
		return kvstore.JoinKey(state, cluster)
	}
	go factory.NewWatchStore(cluster, nodestore.ValidatingKeyCreator(nodestore.ClusterNameValidator(cluster), nodestore.NameValidator()),
		observer{s, s.Nodes}).Watch(ctx, backend, prefix(nodestore.NodeStorePrefix))
	go factory.NewWatchStore(cluster, servicestore.KeyCreator(servicestore.ClusterNameValidator(cluster)),
		observer{s, s.Services}).Watch(ctx, backend, prefix(servicestore.ServiceStorePrefix))
	s.identities(ctx, backend, cluster, config.Capabilities.Cached)
	ips := ipcache.NewIPIdentityWatcher(logger, cluster, s, factory, source.ClusterMesh)
	go func() {
		if ips.WaitForSync(ctx) == nil {
			s.with(func() { s.Synced = true })
		}
	}()
	ips.Watch(ctx, backend, ipcache.WithCachedPrefix(config.Capabilities.Cached), ipcache.WithIdentityValidator(config.ID))
}

// identities reads the identities that there are now.
func (s *state) identities(ctx context.Context, backend kvstore.BackendOperations, cluster string, cached bool) {
	prefix := "cilium/state/identities/v1/id/"
	if cached {
		prefix = "cilium/cache/identities/v1/" + cluster + "/id/"
	}
	all, err := backend.ListPrefix(ctx, prefix)
	s.with(func() {
		if err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
		for name, value := range all {
			identity := (&key.GlobalIdentity{}).PutKey(string(value.Data))
			s.Identities[strings.TrimPrefix(name, prefix)] = identity.GetKey()
		}
	})
}
