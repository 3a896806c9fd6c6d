package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// checker compares the contents of a restarted server with the history and the ledger.
type checker struct {
	c      *clientv3.Client
	h      *history
	l      *ledger
	rng    *rand.Rand
	events int
}

func (k *checker) check(ctx context.Context) error {
	k.l.mu.Lock()
	wrong := strings.Join(k.l.wrong, "\n")
	k.l.mu.Unlock()
	if wrong != "" {
		return fmt.Errorf("answers were wrong: %s", wrong)
	}
	// Claims about revisions that are compacted now must be checked against the history before this round.
	if err := k.oldClaims(); err != nil {
		return err
	}
	now, err := k.c.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	head := now.Header.Revision
	if head < k.l.seen {
		return fmt.Errorf("the store is at revision %d, but an answer was at %d; lost: %v", head, k.l.seen, k.l.left(head))
	}
	if k.l.compacted > 0 {
		k.h.compact(k.l.compacted)
	}
	for _, step := range []func() error{
		func() error { return k.allRevisions(ctx, head) },
		func() error { return k.compaction(ctx) },
		func() error { return k.state(now, "the state", k.h.now) },
		func() error { return k.randomRevisions(ctx) },
		func() error { return k.leases(ctx) },
		func() error { return k.usersAndRoles(ctx) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	k.l.reset()
	return nil
}

// oldClaims checks the claims about revisions that the history already has.
func (k *checker) oldClaims() error {
	for rev, c := range k.l.claims {
		if rev > k.h.head() {
			continue
		}
		events := sorted(k.h.base)
		if rev > k.h.floor {
			events = k.h.of(rev, rev)
		}
		for _, got := range c.events {
			i := slices.IndexFunc(events, func(e event) bool { return e.key == got.key && e.rev == rev })
			if i < 0 || !sameEvent(events[i], got) {
				return fmt.Errorf("an answer showed {%v}, which is not in the history", got)
			}
		}
		delete(k.l.claims, rev)
	}
	return nil
}

// allRevisions reads all revisions from the server: revisions that were known must be unchanged, and new revisions must
// follow from them and consist of writes that clients began.
func (k *checker) allRevisions(ctx context.Context, head int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next := k.h.floor + 1
	if head <= k.h.floor {
		return nil
	}
	known := k.h.head()
	if head < known {
		return fmt.Errorf("the store is at revision %d, but the history is at %d", head, known)
	}
	settle := func(events []event) error {
		rev := events[0].rev
		if rev != next {
			return fmt.Errorf("revision %d is followed by {%v}", next-1, events[0])
		}
		next++
		if rev <= known {
			want := slices.Clone(k.h.of(rev, rev))
			for i := range want {
				want[i] = want[i].plain()
			}
			if d := difference(events, want); d != "" {
				return fmt.Errorf("revision %d has changed: %s", rev, d)
			}
			return nil
		}
		if err := k.l.settle(rev, events); err != nil {
			return err
		}
		return k.h.append(events)
	}
	var events []event
	for r := range k.c.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(next)) {
		if r.CompactRevision > 0 && slices.Contains(k.l.compacting, r.CompactRevision) {
			// The compaction took place, although its answer was lost.
			k.l.compacting, k.l.compacted = nil, r.CompactRevision
			k.h.compact(r.CompactRevision)
			return k.allRevisions(ctx, head)
		}
		if err := r.Err(); err != nil {
			return fmt.Errorf("reading from revision %d (compact revision %d): %w", next, r.CompactRevision, err)
		}
		for _, e := range r.Events {
			if len(events) > 0 && events[0].rev != e.Kv.ModRevision {
				if err := settle(events); err != nil {
					return err
				}
				events = nil
			}
			events = append(events, watchEvent((*mvccpb.Event)(e)))
			k.events++
		}
		if len(events) > 0 && events[0].rev >= head {
			return settle(events)
		}
	}
	return fmt.Errorf("reading ended before revision %d: %v", next, ctx.Err())
}

// compaction checks that a compacted revision cannot be read.
func (k *checker) compaction(ctx context.Context) error {
	if k.h.compacted < 2 {
		return nil
	}
	_, err := k.c.Get(ctx, "a", clientv3.WithRev(k.h.compacted-1))
	if !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("reading at %d, compacted at %d: %v", k.h.compacted-1, k.h.compacted, err)
	}
	return nil
}

func (k *checker) state(r *clientv3.GetResponse, what string, want map[string]event) error {
	var got []event
	for _, kv := range r.Kvs {
		got = append(got, kvEvent(kv))
	}
	if d := difference(got, sorted(want)); d != "" {
		return fmt.Errorf("%s: %s", what, d)
	}
	return nil
}

// randomRevisions reads at random earlier revisions.
func (k *checker) randomRevisions(ctx context.Context) error {
	h := k.h
	if h.head() <= h.floor {
		return nil
	}
	at := h.floor + k.rng.Int64N(h.head()-h.floor+1)
	r, err := k.c.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(at))
	if err != nil {
		return err
	}
	if err := k.state(r, fmt.Sprint("the state at ", at), h.at(at)); err != nil {
		return err
	}
	for range 10 {
		e := h.events[k.rng.IntN(len(h.events))]
		r, err := k.c.Get(ctx, e.key, clientv3.WithRev(e.rev))
		if err != nil {
			return err
		}
		want := map[string]event{}
		if !e.deleted {
			want[e.key] = e
		}
		if err := k.state(r, fmt.Sprintf("%q at %d", e.key, e.rev), want); err != nil {
			return err
		}
	}
	return nil
}

func (k *checker) leases(ctx context.Context) error {
	api := pb.NewLeaseClient(k.c.ActiveConnection())
	r, err := api.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return err
	}
	there := map[int64]bool{}
	for _, l := range r.Leases {
		there[l.ID] = true
		if o, known := k.l.leases[l.ID]; !known || o == revoked {
			return fmt.Errorf("lease %x exists, but was revoked or never granted", l.ID)
		}
	}
	attached := map[int64][]string{}
	for _, e := range sorted(k.h.now) {
		if e.lease != 0 {
			attached[e.lease] = append(attached[e.lease], e.key)
		}
	}
	for id, o := range k.l.leases {
		if !there[id] {
			if o == acked {
				return fmt.Errorf("lease %x was granted and does not exist", id)
			}
			if len(attached[id]) > 0 {
				return fmt.Errorf("lease %x does not exist, but its keys %q do", id, attached[id])
			}
			delete(k.l.leases, id)
			continue
		}
		k.l.leases[id] = acked
		r, err := api.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		if err != nil {
			return err
		}
		var keys []string
		for _, b := range r.Keys {
			keys = append(keys, string(b))
		}
		slices.Sort(keys)
		if r.TTL <= 0 || !slices.Equal(keys, attached[id]) {
			return fmt.Errorf("lease %x has %d seconds and keys %q, not %q", id, r.TTL, keys, attached[id])
		}
	}
	for id, keys := range attached {
		if !there[id] {
			return fmt.Errorf("%q are attached to lease %x, which does not exist", keys, id)
		}
	}
	return nil
}

func (k *checker) usersAndRoles(ctx context.Context) error {
	users, err := k.c.UserList(ctx)
	if err != nil {
		return err
	}
	roles, err := k.c.RoleList(ctx)
	if err != nil {
		return err
	}
	return firstError(sameNames("user", k.l.users, users.Users), sameNames("role", k.l.roles, roles.Roles))
}

// sameNames compares users or roles with the ledger, and settles additions whose outcome was unknown.
func sameNames(what string, known map[string]outcome, there []string) error {
	for _, name := range there {
		if _, ok := known[name]; !ok {
			return fmt.Errorf("%s %s was never added", what, name)
		}
		known[name] = acked
	}
	for name, o := range known {
		if !slices.Contains(there, name) {
			if o == acked {
				return fmt.Errorf("%s %s was added and does not exist", what, name)
			}
			delete(known, name)
		}
	}
	return nil
}
