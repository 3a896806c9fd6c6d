package interop

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sort"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// event is the change of one key at one revision, with hashes in place of values.
type event struct {
	rev                    int64
	key                    string
	deleted                bool
	value                  uint64
	create, version, lease int64
	// the revision and the value that the event replaced
	prev      int64
	prevValue uint64
}

func (e event) String() string {
	if e.deleted {
		return fmt.Sprintf("%d delete %q", e.rev, e.key)
	}
	return fmt.Sprintf("%d put %q value %x create %d version %d lease %x", e.rev, e.key, e.value, e.create, e.version, e.lease)
}

// plain is the event without the replaced revision and value.
func (e event) plain() event {
	e.prev, e.prevValue = 0, 0
	return e
}

var valueSeed = maphash.MakeSeed()

func hashOf(value []byte) uint64 { return maphash.Bytes(valueSeed, value) }

func kvEvent(kv *mvccpb.KeyValue) event {
	return event{
		rev: kv.ModRevision, key: string(kv.Key), value: hashOf(kv.Value),
		create: kv.CreateRevision, version: kv.Version, lease: kv.Lease,
	}
}

func watchEvent(e *mvccpb.Event) event {
	if e.Type == mvccpb.DELETE {
		return event{rev: e.Kv.ModRevision, key: string(e.Kv.Key), deleted: true}
	}
	return kvEvent(e.Kv)
}

// history has every event that was read from the server, by revision.
type history struct {
	compacted int64 // acknowledged
	floor     int64 // revisions up to this one are dropped
	base      map[string]event
	events    []event
	starts    []int // index of the first event of each revision
	now       map[string]event
}

func newHistory(floor int64, base map[string]event) *history {
	h := &history{floor: floor, base: base, now: map[string]event{}}
	for k, e := range base {
		h.now[k] = e
	}
	return h
}

func (h *history) head() int64 { return h.floor + int64(len(h.starts)) }

// of returns the events of the revisions from first to last.
func (h *history) of(first, last int64) []event {
	if first > last {
		return nil
	}
	end := len(h.events)
	if last < h.head() {
		end = h.starts[last-h.floor]
	}
	return h.events[h.starts[first-h.floor-1]:end]
}

// apply changes the state by an event, after a check that the event is a valid successor of the key's last event.
func apply(state map[string]event, e *event) error {
	old, exists := state[e.key]
	if e.prev, e.prevValue = 0, 0; exists {
		e.prev, e.prevValue = old.rev, old.value
	}
	switch {
	case e.deleted && !exists:
		return fmt.Errorf("{%v} deletes a key that did not exist", e)
	case e.deleted:
		delete(state, e.key)
		return nil
	case exists && (e.create != old.create || e.version != old.version+1):
		return fmt.Errorf("{%v} does not follow {%v}", e, old)
	case !exists && (e.create != e.rev || e.version != 1):
		return fmt.Errorf("{%v} is not a valid first event of a key", e)
	}
	state[e.key] = *e
	return nil
}

// append adds the events of the next revision.
func (h *history) append(events []event) error {
	h.starts = append(h.starts, len(h.events))
	for _, e := range events {
		if err := apply(h.now, &e); err != nil {
			return err
		}
		h.events = append(h.events, e)
	}
	return nil
}

// at returns the state at a revision after the floor.
func (h *history) at(rev int64) map[string]event {
	state := make(map[string]event, len(h.base))
	for k, e := range h.base {
		state[k] = e
	}
	for _, e := range h.of(h.floor+1, rev) {
		_ = apply(state, &e)
	}
	return state
}

func (h *history) compact(rev int64) {
	if h.compacted = rev; rev <= h.floor {
		return
	}
	h.base = h.at(rev)
	cut := len(h.events) - len(h.of(rev+1, h.head()))
	h.events = slices.Clone(h.events[cut:])
	h.starts = slices.Clone(h.starts[rev-h.floor:])
	for i := range h.starts {
		h.starts[i] -= cut
	}
	h.floor = rev
}

// claim has the events that answers have shown of one revision.
type claim struct {
	events map[string]event
	whole  bool // the revision has no other events
}

type span struct{ from, to string }

type outcome int

const (
	acked outcome = iota
	unknown
	revoked
	revoking // sent, without an answer so far
)

// ledger has the writes that clients have sent and the answers they got since the history was last read.
type ledger struct {
	mu         sync.Mutex
	claims     map[int64]*claim
	puts       map[uint64]string // hash of the value → key, of every put that was sent
	deletes    []span            // sent
	seen       int64             // the highest revision in any answer
	compacted  int64             // acknowledged
	compacting []int64           // sent, without an answer so far
	writes     int               // acknowledged
	wrong      []string

	// Unlike the fields above, these are never reset.
	leases map[int64]outcome
	users  map[string]outcome
	roles  map[string]outcome
}

func newLedger() *ledger {
	l := &ledger{leases: map[int64]outcome{}, users: map[string]outcome{}, roles: map[string]outcome{}}
	l.reset()
	return l
}

// reset empties the ledger after a check of everything in it.
func (l *ledger) reset() {
	l.claims, l.puts, l.deletes, l.compacting, l.compacted = map[int64]*claim{}, map[uint64]string{}, nil, nil, 0
}

func (l *ledger) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < 20 {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

func (l *ledger) beginPut(key string, hash uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.puts[hash] = key
}

func (l *ledger) beginDelete(from, to string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deletes = append(l.deletes, span{from, to})
}

func (l *ledger) saw(rev int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = max(l.seen, rev)
}

// claim records events that an answer shows of a revision. An event that was written and not read back has version 0.
func (l *ledger) claim(rev int64, whole bool, events ...event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = max(l.seen, rev)
	c := l.claims[rev]
	if c == nil {
		c = &claim{events: map[string]event{}}
		l.claims[rev] = c
	}
	if whole {
		c.whole = true
		l.writes++
	}
	for _, e := range events {
		if old, ok := c.events[e.key]; ok && !sameEvent(old, e) {
			l.wrong = append(l.wrong, fmt.Sprintf("two answers for one revision: {%v} and {%v}", old, e))
		}
		if old := c.events[e.key]; old.version == 0 {
			c.events[e.key] = e
		}
	}
}

func sameEvent(a, b event) bool {
	if a.version == 0 || b.version == 0 {
		return a.rev == b.rev && a.key == b.key && a.deleted == b.deleted && a.value == b.value
	}
	return a.plain() == b.plain()
}

// settle checks the events of the next revision against the writes that were sent and the answers.
func (l *ledger) settle(rev int64, events []event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		if !e.deleted {
			if key, ok := l.puts[e.value]; !ok || key != e.key {
				return fmt.Errorf("{%v}: no client sent this put, or the put was applied twice", e)
			}
			delete(l.puts, e.value)
		} else if !slices.ContainsFunc(l.deletes, func(s span) bool { return s.from <= e.key && e.key < s.to }) {
			return fmt.Errorf("{%v}: no client sent this delete", e)
		}
	}
	c := l.claims[rev]
	if c == nil {
		return nil
	}
	delete(l.claims, rev)
	for _, want := range c.events {
		i := slices.IndexFunc(events, func(e event) bool { return e.key == want.key })
		if i < 0 || !sameEvent(events[i], want) {
			return fmt.Errorf("an answer showed {%v}, but the revision holds %v", want, events)
		}
	}
	if c.whole && len(c.events) != len(events) {
		return fmt.Errorf("answers showed %d events at revision %d, which holds %v", len(c.events), rev, events)
	}
	return nil
}

// left returns claims about revisions after head, which the server has lost.
func (l *ledger) left(head int64) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var revs []int64
	for rev := range l.claims {
		if rev > head {
			revs = append(revs, rev)
		}
	}
	slices.Sort(revs)
	var texts []string
	for _, rev := range revs[:min(len(revs), 5)] {
		texts = append(texts, fmt.Sprint(l.claims[rev].events))
	}
	return texts
}

// difference describes the first difference between two lists of events.
func difference(got, want []event) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("%d events are missing, the first is {%v}", len(want)-i, want[i])
		case i >= len(want):
			return fmt.Sprintf("%d events too many, the first is {%v}", len(got)-i, got[i])
		case got[i] != want[i]:
			return fmt.Sprintf("{%v} replaces %d/%x instead of {%v} replaces %d/%x", got[i], got[i].prev, got[i].prevValue, want[i], want[i].prev, want[i].prevValue)
		}
	}
	return ""
}

func sorted(state map[string]event) []event {
	list := make([]event, 0, len(state))
	for _, e := range state {
		list = append(list, e.plain())
	}
	sort.Slice(list, func(i, j int) bool { return list[i].key < list[j].key })
	return list
}

func under(events []event, prefix string) []event {
	var list []event
	for _, e := range events {
		if strings.HasPrefix(e.key, prefix) {
			list = append(list, e)
		}
	}
	return list
}
