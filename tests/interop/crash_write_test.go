package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	authors    = 6
	ownKeys    = 30
	leaseKeys  = 5
	sharedKeys = 8
)

// serial makes every value unique.
var serial atomic.Int64

// author is a client that writes keys of its own, whose contents it knows at any time, and keys that all authors share.
// An author stops at the first error, because from then on its knowledge is incomplete.
type author struct {
	ctx    context.Context
	c      *clientv3.Client
	l      *ledger
	rng    *rand.Rand
	id     int
	prefix string
	own    map[string]event
	leases []int64
	last   int64
}

func newAuthor(ctx context.Context, c *clientv3.Client, l *ledger, rng *rand.Rand, id int, state map[string]event) *author {
	a := &author{ctx: ctx, c: c, l: l, rng: rng, id: id, prefix: fmt.Sprintf("w%d/", id), own: map[string]event{}}
	for k, e := range state {
		if strings.HasPrefix(k, a.prefix) {
			a.own[k] = e.plain()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for lease := range l.leases {
		if lease%authors == int64(id) {
			a.leases = append(a.leases, lease)
		}
	}
	slices.Sort(a.leases)
	return a
}

func (a *author) write() error {
	for {
		if err := a.step(); err != nil {
			return err
		}
		time.Sleep(time.Duration(a.rng.IntN(4000)) * time.Microsecond)
	}
}

func (a *author) step() error {
	switch n := a.rng.IntN(100); {
	case n < 50:
		return a.put(a.ownKey(), 0)
	case n < 57:
		return a.put(a.sharedKey(), 0)
	case n < 65:
		return a.remove(a.ownKey(), "")
	case n < 68:
		from, to := a.ownKey(), a.ownKey()
		return a.remove(min(from, to), max(from, to))
	case n < 69:
		return a.remove("s/k", "s/l")
	case n < 80:
		return a.txn()
	case n < 84:
		return a.swap()
	case n < 92:
		return a.get()
	default:
		return a.lease()
	}
}

func (a *author) ownKey() string { return fmt.Sprintf("%sk%02d", a.prefix, a.rng.IntN(ownKeys)) }

func (a *author) sharedKey() string { return fmt.Sprintf("s/k%d", a.rng.IntN(sharedKeys)) }

func (a *author) mine(key string) bool { return strings.HasPrefix(key, a.prefix) }

func (a *author) value() string {
	var n int
	switch p := a.rng.IntN(100); {
	case p < 60:
		n = a.rng.IntN(100)
	case p < 90:
		n = a.rng.IntN(4 << 10)
	case p < 99:
		n = a.rng.IntN(32 << 10)
	default:
		n = a.rng.IntN(200 << 10)
	}
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		copy(b[i:], fmt.Sprintf("%08x", a.rng.Uint32()))
	}
	return fmt.Sprint(serial.Add(1), " ") + string(b)
}

// begin makes a value and records the put in the ledger before the put is sent.
func (a *author) begin(key string) (value string, hash uint64) {
	value = a.value()
	hash = hashOf([]byte(value))
	a.l.beginPut(key, hash)
	return value, hash
}

// expected is the event that a put produces. The version of a shared key is unknown.
func (a *author) expected(key string, rev int64, hash uint64, lease int64) event {
	e := event{rev: rev, key: key, value: hash, lease: lease}
	if a.mine(key) {
		e.create, e.version = rev, 1
		if old, ok := a.own[key]; ok {
			e.create, e.version = old.create, old.version+1
		}
	}
	return e
}

// recordWrite records an acknowledged write.
func (a *author) recordWrite(rev int64, events ...event) {
	if rev <= a.last {
		a.l.fail("%s: a write at revision %d after one at %d", a.prefix, rev, a.last)
	}
	a.last = rev
	a.l.claim(rev, true, events...)
	for _, e := range events {
		if !a.mine(e.key) {
			continue
		}
		if e.deleted {
			delete(a.own, e.key)
		} else {
			a.own[e.key] = e
		}
	}
}

// checkShown compares the own keys of an answer about a range with their known contents, and records claims about all keys.
func (a *author) checkShown(what, from, to string, got []*mvccpb.KeyValue) {
	if to == "" {
		to = from + "\x00"
	}
	var want, have []event
	for _, e := range sorted(a.own) {
		if from <= e.key && e.key < to {
			want = append(want, e)
		}
	}
	for _, kv := range got {
		e := kvEvent(kv)
		a.l.claim(e.rev, false, e)
		if a.mine(e.key) {
			have = append(have, e)
		}
	}
	if d := difference(have, want); d != "" {
		a.l.fail("%s of %q to %q shows: %s", what, from, to, d)
	}
}

func (a *author) put(key string, lease int64) error {
	value, hash := a.begin(key)
	opts := []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(lease))}
	prev := a.rng.IntN(3) == 0
	if prev {
		opts = append(opts, clientv3.WithPrevKV())
	}
	r, err := a.c.Put(a.ctx, key, value, opts...)
	if err != nil {
		return err
	}
	if prev && a.mine(key) {
		var kvs []*mvccpb.KeyValue
		if r.PrevKv != nil {
			kvs = append(kvs, r.PrevKv)
		}
		a.checkShown("a put", key, "", kvs)
	}
	a.recordWrite(r.Header.Revision, a.expected(key, r.Header.Revision, hash, lease))
	return nil
}

func (a *author) remove(from, to string) error {
	opts := []clientv3.OpOption{clientv3.WithPrevKV()}
	if to == "" || from == to {
		to = from + "\x00"
	} else {
		opts = append(opts, clientv3.WithRange(to))
	}
	a.l.beginDelete(from, to)
	r, err := a.c.Delete(a.ctx, from, opts...)
	if err != nil {
		return err
	}
	a.deleted(r.Header.Revision, from, to, r.PrevKvs)
	return nil
}

func (a *author) deleted(rev int64, from, to string, prev []*mvccpb.KeyValue) {
	a.checkShown("a delete", from, to, prev)
	if len(prev) == 0 {
		a.l.saw(rev)
		return
	}
	var events []event
	for _, kv := range prev {
		events = append(events, event{rev: rev, key: string(kv.Key), deleted: true})
	}
	a.recordWrite(rev, events...)
}

// txn sends a transaction that compares own keys, so that the outcome is known in advance, and writes several keys.
func (a *author) txn() error {
	var k []string
	for len(k) < 4 {
		if key := a.ownKey(); !slices.Contains(k, key) {
			k = append(k, key)
		}
	}
	succeeds := a.rng.IntN(5) > 0
	at := a.own[k[0]].rev
	if !succeeds {
		at++
	}
	v1, h1 := a.begin(k[0])
	v2, h2 := a.begin(k[1])
	a.l.beginDelete(k[2], k[2]+"\x00")
	r, err := a.c.Txn(a.ctx).
		If(clientv3.Compare(clientv3.ModRevision(k[0]), "=", at), clientv3.Compare(clientv3.Version(k[3]), "=", a.own[k[3]].version)).
		Then(clientv3.OpPut(k[0], v1), clientv3.OpPut(k[1], v2), clientv3.OpDelete(k[2], clientv3.WithPrevKV()), clientv3.OpGet(k[3])).
		Else(clientv3.OpGet(k[1])).Commit()
	if err != nil {
		return err
	}
	if r.Succeeded != succeeds {
		a.l.fail("%s: a transaction at %d on %q at %d: succeeded is %v", a.prefix, r.Header.Revision, k[0], at, r.Succeeded)
		return nil
	}
	rev := r.Header.Revision
	if !succeeds {
		a.l.saw(rev)
		a.checkShown("a transaction", k[1], "", r.Responses[0].GetResponseRange().Kvs)
		return nil
	}
	a.checkShown("a transaction", k[3], "", r.Responses[3].GetResponseRange().Kvs)
	gone := r.Responses[2].GetResponseDeleteRange().PrevKvs
	a.checkShown("a transaction's delete", k[2], "", gone)
	events := []event{a.expected(k[0], rev, h1, 0), a.expected(k[1], rev, h2, 0)}
	if len(gone) > 0 {
		events = append(events, event{rev: rev, key: k[2], deleted: true})
	}
	a.recordWrite(rev, events...)
	return nil
}

// swap changes a shared key together with an own one, unless another author has changed the shared key meanwhile.
func (a *author) swap() error {
	shared, own := a.sharedKey(), a.ownKey()
	g, err := a.c.Get(a.ctx, shared)
	if err != nil {
		return err
	}
	a.l.saw(g.Header.Revision)
	at := int64(0)
	for _, kv := range g.Kvs {
		at = kv.ModRevision
		a.l.claim(at, false, kvEvent(kv))
	}
	v1, h1 := a.begin(shared)
	v2, h2 := a.begin(own)
	r, err := a.c.Txn(a.ctx).If(clientv3.Compare(clientv3.ModRevision(shared), "=", at)).
		Then(clientv3.OpPut(shared, v1), clientv3.OpPut(own, v2)).Commit()
	if err != nil {
		return err
	}
	if !r.Succeeded {
		a.l.saw(r.Header.Revision)
		return nil
	}
	a.recordWrite(r.Header.Revision, a.expected(shared, r.Header.Revision, h1, 0), a.expected(own, r.Header.Revision, h2, 0))
	return nil
}

func (a *author) get() error {
	if a.rng.IntN(4) == 0 {
		r, err := a.c.Get(a.ctx, "s/k", clientv3.WithRange("s/l"))
		if err != nil {
			return err
		}
		a.l.saw(r.Header.Revision)
		for _, kv := range r.Kvs {
			a.l.claim(kv.ModRevision, false, kvEvent(kv))
		}
		return nil
	}
	from, to := a.ownKey(), a.ownKey()
	from, to = min(from, to), max(from, to)
	if from == to {
		return nil
	}
	r, err := a.c.Get(a.ctx, from, clientv3.WithRange(to))
	if err != nil {
		return err
	}
	a.l.saw(r.Header.Revision)
	a.checkShown("a range", from, to, r.Kvs)
	return nil
}

// lease grants a lease, puts a key under a lease, or revokes a lease with its keys. The author chooses the id, so that a
// lease whose grant was not answered can be told from a lease that nobody asked for.
func (a *author) lease() error {
	api := pb.NewLeaseClient(a.c.ActiveConnection())
	if len(a.leases) == 0 || len(a.leases) < 3 && a.rng.IntN(4) == 0 {
		id := (a.rng.Int64N(1<<60)+1)*authors + int64(a.id)
		a.l.setLease(id, unknown)
		r, err := api.LeaseGrant(a.ctx, &pb.LeaseGrantRequest{ID: id, TTL: 36000})
		if err != nil {
			return err
		}
		a.l.saw(r.Header.Revision)
		a.l.setLease(id, acked)
		a.leases = append(a.leases, id)
		return nil
	}
	i := a.rng.IntN(len(a.leases))
	id := a.leases[i]
	if a.rng.IntN(4) > 0 {
		return a.put(fmt.Sprintf("%sl%d", a.prefix, a.rng.IntN(leaseKeys)), id)
	}
	a.leases = slices.Delete(a.leases, i, i+1)
	a.l.setLease(id, revoking)
	a.l.beginDelete(a.prefix+"l", a.prefix+"m")
	r, err := api.LeaseRevoke(a.ctx, &pb.LeaseRevokeRequest{ID: id})
	if err != nil {
		return err
	}
	a.l.setLease(id, revoked)
	var events []event
	for _, e := range a.own {
		if e.lease == id {
			events = append(events, event{rev: r.Header.Revision, key: e.key, deleted: true})
		}
	}
	if len(events) == 0 {
		a.l.saw(r.Header.Revision)
		return nil
	}
	a.recordWrite(r.Header.Revision, events...)
	return nil
}

func (l *ledger) setLease(id int64, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases[id] = o
}

// rareOperation does one rare operation: a compaction, or the addition of a user or a role.
func (l *ledger) rareOperation(ctx context.Context, c *clientv3.Client, rng *rand.Rand, floor, head int64) error {
	switch n := rng.IntN(10); {
	case n < 4 && head > floor:
		at := floor + 1 + rng.Int64N(head-floor)
		l.mu.Lock()
		l.compacting = append(l.compacting, at)
		l.mu.Unlock()
		if _, err := c.Compact(ctx, at); err != nil {
			return err
		}
		l.mu.Lock()
		l.compacted, l.compacting = at, nil
		l.mu.Unlock()
	case n == 4:
		return l.addName(l.users, func(name string) error {
			_, err := c.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		})
	case n == 5:
		return l.addName(l.roles, func(name string) error {
			_, err := c.RoleAdd(ctx, name)
			return err
		})
	}
	return nil
}

func (l *ledger) addName(to map[string]outcome, add func(name string) error) error {
	name := fmt.Sprint("n", serial.Add(1))
	set := func(o outcome) {
		l.mu.Lock()
		defer l.mu.Unlock()
		to[name] = o
	}
	set(unknown)
	if err := add(name); err != nil {
		return err
	}
	set(acked)
	return nil
}
