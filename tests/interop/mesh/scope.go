package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// A twentieth of the addresses, which are those of one namespace, and the identities that they have.
const wantedScope = `apiVersion: scope.isthmus.io/v1
kind: Scope
import:
  clusters:
  - name: a-twentieth
    clusters: ["*"]
    identities: used
    endpoints:
      default: exclude
      rules:
      - {name: wanted, action: include, namespaces: {names: [namespace-0]}}
`

// Everything: the scope that is narrowed while the mirror runs.
const wholeScope = "apiVersion: scope.isthmus.io/v1\nkind: Scope\n"

// narrow leaves in the model of a source what a publisher writes whose scope file has, under export, the same list of
// endpoints and `identities: used`: all nodes, the addresses of one namespace, and their identities.
func narrow(s *source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[int]bool{}
	for n := range s.ips {
		if isWanted(n) {
			used[n%*identitiesPer] = true
		} else {
			delete(s.want, ipKey(s.id, n))
		}
	}
	for n := range *identitiesPer {
		if !used[n] {
			delete(s.want, identityKey(s.id, n))
		}
	}
}

// isWanted says whether an address is one of the wanted namespace.
func isWanted(address int) bool { return address%20 == 0 }

// A way of having a scope: what the sources hold, and the scope file of the mirror.
type scopeCase struct {
	id, name string
	isNarrow bool // the sources have export rules
	scope    string
}

var scopeCases = []scopeCase{
	{"none", "no scope", false, ""},
	{"import", "import rules", false, wantedScope},
	{"edits", "a file that wants everything", false, wholeScope},
	{"export", "export rules at the sources", true, ""},
	{"both", "export and import rules", true, wantedScope},
}

// scopedFigures are the measurements of one mirror.
type scopedFigures struct {
	id, name, load string
	keys           int
	synced, spent  time.Duration
	memory         peer.Memory
	read, list     int64
	listed         time.Duration
}

// scoped measures what a scope saves a mirror of the same clusters: no scope at all, rules of the import, rules of the
// export at the sources, and both; and a scope file that begins to want a twentieth while the mirror runs, and everything
// again. All but the last keep a twentieth of the addresses.
func scoped(dir string, ca *authority) error {
	var sources []*source
	for i := range *clusters {
		s := newSource(filepath.Join(dir, "sources"), ca, i+1, false)
		// Nothing is compared with the model.
		s.isForgetful = true
		sources = append(sources, s)
	}
	defer func() {
		for _, s := range sources {
			if s.etcd != nil {
				s.kill()
			}
		}
	}()
	var all []scopedFigures
	isFilled, isNarrow := false, false
	for _, c := range scopeCases {
		if !slices.Contains(strings.Split(*scopes, ","), c.id) {
			continue
		}
		if !isFilled || isNarrow != c.isNarrow {
			if err := refill(sources, c.isNarrow); err != nil {
				return err
			}
			isFilled, isNarrow = true, c.isNarrow
		}
		figures, err := scopedCase(filepath.Join(dir, c.id), ca, sources, c)
		all = append(all, figures...)
		if err != nil {
			return err
		}
	}
	scopedTables(all)
	return nil
}

// refill starts the sources anew, with everything or with what export rules keep.
func refill(sources []*source, isNarrow bool) error {
	began := time.Now()
	for _, s := range sources {
		s.prepare = nil
		if isNarrow {
			s.prepare = narrow
		}
		if s.etcd != nil {
			s.kill()
		}
	}
	if err := launch(sources); err != nil {
		return err
	}
	debug.FreeOSMemory()
	progress("%d sources filled in %v, load %.1f", len(sources), since(began), peer.Load())
	return nil
}

// scopedCase measures one mirror, and, if it has a scope file that wants everything, the edits of this file.
func scopedCase(dir string, ca *authority, sources []*source, c scopeCase) (all []scopedFigures, err error) {
	file := filepath.Join(dir, "scope.yaml")
	r, err := scopedRig(dir, ca, sources, file, c.scope)
	if err != nil {
		return nil, err
	}
	defer func() {
		complain(r)
		r.mirror.Stop(syscall.SIGKILL)
		if r.client != nil {
			r.client.Close()
		}
		_ = os.RemoveAll(r.dir)
	}()
	whole, twentieth := scopedKeys(sources)
	keys := whole
	if c.isNarrow || c.scope == wantedScope {
		keys = twentieth
	}
	add := func(id, name string, keys int, act func() error) error {
		figures, err := r.scopedFigures(name, keys, act)
		if figures.id = id; err == nil {
			all = append(all, figures)
		}
		return err
	}
	if err = add(c.id, c.name, keys, r.launch); err != nil || c.scope != wholeScope {
		return all, err
	}
	if err = add("", "narrowed to a twentieth", twentieth, func() error { return replace(file, wantedScope) }); err != nil {
		return all, err
	}
	// What was replaced or deleted stays in the history until it is compacted, by default for ten minutes.
	if err = add("", "the same after a compaction", twentieth, r.compact); err != nil {
		return all, err
	}
	return all, add("", "widened to everything", whole, func() error { return replace(file, wholeScope) })
}

// scopedKeys is the number of keys of all sources, and of those that the rules keep.
func scopedKeys(sources []*source) (whole, twentieth int) {
	used, addresses := map[int]bool{}, 0
	for n := range *ipsPer {
		if isWanted(n) {
			addresses++
			used[n%*identitiesPer] = true
		}
	}
	return len(sources) * (*nodesPer + *identitiesPer + *ipsPer), len(sources) * (*nodesPer + len(used) + addresses)
}

// scopedTables prints the figures, how many times smaller they are than without a scope, and the cost of a key that is
// left out.
func scopedTables(all []scopedFigures) {
	by := map[string]scopedFigures{}
	table := [][]string{{"scope", "load", "keys", "sync s", "mirror CPU s", "peak MiB", "at rest MiB", "not file's", "read MiB", "list MiB", "list s"}}
	for _, f := range all {
		by[f.id] = f
		table = append(table, []string{
			f.name, f.load, fmt.Sprint(f.keys), inSeconds(f.synced), inSeconds(f.spent), inMiB(f.memory.Peak), inMiB(f.memory.RSS),
			inMiB(f.memory.Anonymous), inMiB(f.read), inMiB(f.list), inSeconds(f.listed),
		})
	}
	peer.Table(table)
	if none, ok := by["none"]; ok {
		fmt.Println("\nHow many times less than without a scope:")
		table = [][]string{{"scope", "keys", "bytes of an agent's list", "time to sync", "mirror CPU", "memory", "memory without the program's file", "bytes read"}}
		for _, f := range all {
			if f.id == "none" || f.id == "" || f.keys == none.keys {
				continue
			}
			table = append(table, []string{
				f.name, times(none.keys, f.keys), times(none.list, f.list), times(none.synced, f.synced), times(none.spent, f.spent),
				times(none.memory.RSS, f.memory.RSS), times(none.memory.Anonymous, f.memory.Anonymous), times(none.read, f.read),
			})
		}
		peer.Table(table)
	}
	whole, narrow := by["import"], by["both"]
	if whole.id == "" || narrow.id == "" {
		return
	}
	// Both mirrors have the same rules and write the same keys. One of them reads the keys that are left out as well.
	leftOut := *clusters*(*nodesPer+*identitiesPer+*ipsPer) - whole.keys
	each := func(of time.Duration) float64 { return float64(of.Nanoseconds()) / 1000 / float64(leftOut) }
	fmt.Printf("\nA key that import rules leave out costs %.2f µs of CPU time from socket to decision, and %.0f bytes of memory (%d keys).\n",
		each(whole.spent-narrow.spent), float64(whole.memory.Anonymous-narrow.memory.Anonymous)/float64(leftOut), leftOut)
}

func times[N int | int64 | time.Duration](more, less N) string {
	return fmt.Sprintf("%.1f", float64(more)/float64(max(less, 1)))
}

func replace(file, text string) error {
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// scopedRig is a mirror of all sources with this scope, which is not started.
func scopedRig(dir string, ca *authority, sources []*source, file, scope string) (*rig, error) {
	r, err := newRig(dir, "serve", ca, sources)
	if err != nil {
		return nil, err
	}
	r.blind = true
	// An agent lists everything: the store must hold it.
	r.mirror.Args = append(r.mirror.Args, "--quota-backend-bytes=0", "--ui-addr=")
	if scope != "" {
		r.mirror.Args = append(r.mirror.Args, "--scope="+file)
		if err := replace(file, scope); err != nil {
			return nil, err
		}
	}
	for _, s := range sources {
		if err := r.add(s); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// scopedFigures does something, waits until just `keys` keys are mirrored, and measures that.
func (r *rig) scopedFigures(name string, keys int, act func() error) (f scopedFigures, err error) {
	load, cpu, sent := peer.Load(), time.Duration(0), int64(0)
	f.name, f.keys = name, keys
	if r.client != nil {
		cpu, sent = r.mirror.CPU(), r.received()
	}
	began := time.Now()
	if err := act(); err != nil {
		return f, err
	}
	if f.synced, err = r.scopedSync(name, keys, began); err != nil {
		return f, err
	}
	f.spent = r.mirror.CPU() - cpu
	time.Sleep(10 * time.Second)
	f.memory = r.mirror.Memory()
	f.list, f.listed, err = r.listed()
	f.load, f.read = fmt.Sprintf("%.1f-%.1f", load, peer.Load()), r.received()-sent
	return f, err
}

// scopedSync waits until just `keys` keys are mirrored and all sources are ready, and returns the time since `began`.
func (r *rig) scopedSync(name string, keys int, began time.Time) (time.Duration, error) {
	for said := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		count := int64(-1)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if got, err := r.client.Get(ctx, "cilium/cache/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err == nil {
			count = got.Count
		}
		cancel()
		switch {
		case count == int64(keys):
			_, err := r.ready(10 * time.Minute)
			return time.Since(began), err
		case r.mirror.Ended():
			return 0, fmt.Errorf("the mirror ended: %s", r.mirror.Complaint())
		case time.Since(began) > 20*time.Minute:
			return 0, fmt.Errorf("%s: %d keys instead of %d after %v", name, count, keys, since(began))
		case time.Since(said) > 10*time.Second:
			progress("%s: %d keys of %d, load %.1f", name, count, keys, peer.Load())
			said = time.Now()
		}
	}
}

// compact lets the mirror's store forget its history.
func (r *rig) compact() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	now, err := r.client.Get(ctx, "cilium/cache/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err == nil {
		_, err = r.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	}
	return err
}

// received is what the sources have sent to the mirror. They have no other clients that read.
func (r *rig) received() int64 {
	return int64(r.figure("cilium_kvstoremesh_remote_cluster_bytes_read_total"))
}

// listed lists all mirrored keys in pages, as an agent does, and adds up their sizes.
func (r *rig) listed() (bytes int64, took time.Duration, err error) {
	began, from := time.Now(), "cilium/cache/"
	end := clientv3.GetPrefixRangeEnd(from)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		page, err := r.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(1000))
		cancel()
		if err != nil {
			return 0, 0, err
		}
		for _, kv := range page.Kvs {
			bytes += int64(len(kv.Key) + len(kv.Value))
		}
		if !page.More {
			return bytes, time.Since(began), nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}
