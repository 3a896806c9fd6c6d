package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
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

// scoped measures what a scope file saves: the mirror of the same clusters without a scope file, with a scope file that
// wants a twentieth of the addresses, and with one that begins to want a twentieth while the mirror runs, and everything again.
func scoped(dir string, ca *authority) error {
	var sources []*source
	for i := range *clusters {
		sources = append(sources, newSource(filepath.Join(dir, "sources"), ca, i+1, false))
	}
	defer func() {
		for _, s := range sources {
			if s.etcd != nil {
				s.kill()
			}
		}
	}()
	began := time.Now()
	if err := launch(sources); err != nil {
		return err
	}
	for _, s := range sources {
		s.want = nil
	}
	debug.FreeOSMemory()
	progress("%d sources filled in %v, load %.1f", len(sources), since(began), peer.Load())
	table := [][]string{{"scope", "load", "keys", "sync s", "mirror CPU s", "peak MiB", "at rest MiB", "not file's", "read MiB", "list MiB", "list s"}}
	all := len(sources) * (*nodesPer + *identitiesPer + *ipsPer)
	twentieth := len(sources) * (*nodesPer + (*identitiesPer+19)/20 + (*ipsPer+19)/20)
	file := filepath.Join(dir, "scope.yaml")
	for _, c := range []struct {
		name, scope string
		keys        int
	}{{"without a file", "", all}, {"a twentieth", wantedScope, twentieth}, {"a file that wants everything", wholeScope, all}} {
		r, err := scopedRig(filepath.Join(dir, c.name), ca, sources, file, c.scope)
		if err != nil {
			return err
		}
		row, err := r.scopedRow(c.name, c.keys, r.launch)
		if err == nil {
			table = append(table, row)
		}
		if c.scope == wholeScope && err == nil {
			for _, edit := range []struct {
				name, scope string
				keys        int
			}{{"narrowed to a twentieth", wantedScope, twentieth}, {"widened to everything", wholeScope, all}} {
				if row, err = r.scopedRow(edit.name, edit.keys, func() error { return replace(file, edit.scope) }); err != nil {
					break
				}
				table = append(table, row)
			}
		}
		complain(r)
		r.mirror.Stop(syscall.SIGKILL)
		r.client.Close()
		if err != nil {
			return err
		}
		_ = os.RemoveAll(r.dir)
	}
	peer.Table(table)
	return nil
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
	r.mirror.Args = append(r.mirror.Args, "--quota-backend-bytes=0")
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

// scopedRow does something, waits until just `keys` keys are mirrored, and measures that.
func (r *rig) scopedRow(name string, keys int, act func() error) ([]string, error) {
	load, cpu, sent := peer.Load(), time.Duration(0), int64(0)
	if r.client != nil {
		cpu, sent = r.mirror.CPU(), r.received()
	}
	began := time.Now()
	if err := act(); err != nil {
		return nil, err
	}
	synced, said := time.Duration(0), time.Now()
	for synced == 0 {
		count := int64(-1)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if got, err := r.client.Get(ctx, "cilium/cache/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err == nil {
			count = got.Count
		}
		cancel()
		if count == int64(keys) {
			if _, err := r.ready(10 * time.Minute); err != nil {
				return nil, err
			}
			synced = time.Since(began)
		}
		if r.mirror.Ended() {
			return nil, fmt.Errorf("the mirror ended: %s", r.mirror.Complaint())
		}
		if time.Since(began) > 20*time.Minute {
			return nil, fmt.Errorf("%s: %d keys instead of %d after %v", name, count, keys, since(began))
		}
		if time.Since(said) > 10*time.Second {
			progress("%s: %d keys of %d, load %.1f", name, count, keys, peer.Load())
			said = time.Now()
		}
		time.Sleep(100 * time.Millisecond)
	}
	spent := r.mirror.CPU() - cpu
	time.Sleep(10 * time.Second)
	memory := r.mirror.Memory()
	bytes, took, err := r.listed()
	if err != nil {
		return nil, err
	}
	return []string{
		name, fmt.Sprintf("%.1f-%.1f", load, peer.Load()), fmt.Sprint(keys), inSeconds(synced), inSeconds(spent), inMiB(memory.Peak),
		inMiB(memory.RSS), inMiB(memory.Anonymous), inMiB(r.received() - sent), inMiB(bytes), inSeconds(took),
	}, nil
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
