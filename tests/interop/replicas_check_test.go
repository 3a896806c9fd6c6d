package interop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What clients and watchers saw in a round, held against the etcd's history:
//
//   - a watch shows every event of its keys once and in order, no other event, and never a part of a revision; with filters, with
//     previous values, over hops, kills and restarts (etcd's robustness tests call these checks filter, ordered, unique, atomic,
//     bookmarkable, reliable, resumable, prev value and is-create);
//   - an answer to a read is what the etcd had at the revision that the answer names;
//   - an answer to a write names the revision at which exactly this write is in the history, and a conditional one was decided by
//     what was there before;
//   - a write is there once at most, also if its answer was lost, and never if the answer said that it was not sent;
//   - an answer never names an earlier revision than an answer that was complete before its call began, whoever asked whom; a write
//     has a later one.
//
// All but the first are linearizability: the order is that of the revisions, so that nothing has to be searched for.

// call is a call of a client.
type call struct {
	began, ended time.Time
	where        string
	err          error
	revision     int64
	// read says that the call read `key`, and found it changed last at `mod`; 0 if the key was absent.
	read         bool
	serializable bool
	key          string
	mod          int64
	// What the call wrote; an empty value is a deletion.
	wrote map[string]string
	// A conditional write needs that its key was changed last at this revision.
	conditional bool
	expected    int64
}

// run makes a call of a random kind. The value of everything that it writes is unique.
func (a *call) run(c context.Context, kv pb.KVClient, rng *rand.Rand, known map[string]int64, value string) {
	key := hopKey(rng.IntN(80))
	switch k := rng.IntN(12); {
	case k < 5:
		a.key, a.serializable = key, k == 0
		r, err := kv.Range(c, &pb.RangeRequest{Key: []byte(key), Serializable: a.serializable})
		if a.err = err; err == nil {
			a.revision = r.Header.Revision
			a.found(r)
		}
	case k < 8:
		a.wrote = map[string]string{key: value}
		r, err := kv.Put(c, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
		if a.err = err; err == nil {
			a.revision = r.Header.Revision
		}
	case k < 9:
		a.key = key
		r, err := kv.DeleteRange(c, &pb.DeleteRangeRequest{Key: []byte(key)})
		if a.err = err; err != nil {
			return
		}
		a.revision = r.Header.Revision
		if a.read = r.Deleted == 0; !a.read {
			a.wrote = map[string]string{key: ""}
		}
	case k < 10:
		a.conditionally(c, kv, key, value, known[key])
	default:
		a.wrote = map[string]string{}
		q := &pb.TxnRequest{}
		for n := range 3 {
			key := hopKey(rng.IntN(12)*3 + n)
			a.wrote[key] = value
			q.Success = append(q.Success, putOf(key, value))
		}
		r, err := kv.Txn(c, q)
		if a.err = err; err == nil {
			a.revision = r.Header.Revision
		}
	}
}

func putOf(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

// conditionally writes a key if it was changed last at the expected revision, and reads it else.
func (a *call) conditionally(c context.Context, kv pb.KVClient, key, value string, expected int64) {
	a.key, a.conditional, a.expected, a.wrote = key, true, expected, map[string]string{key: value}
	r, err := kv.Txn(c, &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: expected},
		}},
		Success: []*pb.RequestOp{putOf(key, value)},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}},
	})
	if a.err = err; err != nil {
		return
	}
	a.revision = r.Header.Revision
	if !r.Succeeded {
		a.wrote = nil
		a.found(r.Responses[0].GetResponseRange())
	}
}

func (a *call) found(r *pb.RangeResponse) {
	a.read = true
	for _, kv := range r.Kvs {
		a.mod = kv.ModRevision
	}
}

// === the etcd's history ===

// hopHistory is what the members say of the round, of the keys below hop/.
type hopHistory struct {
	events []*clientv3.Event
	// next is the first revision that is not known yet, before the last one of the round before.
	next, before int64
	at           map[int64][]*clientv3.Event
	of           map[string][]*clientv3.Event
	// The revisions of all values that were written in this round and before, and the answers that said that a value was not sent.
	written map[string]int64
	refused map[string]string
}

// collect adds what a member knows until now. It says whether that was all.
func (h *hopHistory) collect(s *server, limit time.Duration) bool {
	c, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	now, err := pb.NewKVClient(connectionTo(s.address)).Range(c, &pb.RangeRequest{Key: []byte("\x00"), CountOnly: true})
	if err != nil {
		return false
	}
	if h.next > now.Header.Revision {
		return true
	}
	stream, err := watchOf(c, s, &pb.WatchCreateRequest{Key: []byte("hop/"), StartRevision: h.next, PrevKv: true})
	if err != nil {
		return false
	}
	for h.next <= now.Header.Revision {
		r, err := stream.Recv()
		if err != nil || r.Canceled {
			return false
		}
		for _, e := range r.Events {
			h.events = append(h.events, (*clientv3.Event)(e))
		}
		h.next = followsOn(h.next, r)
	}
	return true
}

// index prepares the questions below, and looks for what must not be there.
func (h *hopHistory) index(v *verdict) {
	if h.written == nil {
		h.written, h.refused = map[string]int64{}, map[string]string{}
	}
	for _, e := range h.events {
		value := string(e.Kv.Value)
		if before, there := h.written[value]; there && before != e.Kv.ModRevision && value != "" {
			v.finds("the write of %q is there twice, at revisions %d and %d", value, before, e.Kv.ModRevision)
		}
		h.written[value] = e.Kv.ModRevision
	}
	h.at, h.of = map[int64][]*clientv3.Event{}, map[string][]*clientv3.Event{}
	for _, e := range h.events {
		h.at[e.Kv.ModRevision] = append(h.at[e.Kv.ModRevision], e)
		h.of[string(e.Kv.Key)] = append(h.of[string(e.Kv.Key)], e)
	}
}

// changed is the revision at which a key that is there at a revision was changed last; 0 if it is absent. No key is there when a
// round begins.
func (h *hopHistory) changed(key string, revision int64) int64 {
	of := h.of[key]
	at := sort.Search(len(of), func(i int) bool { return of[i].Kv.ModRevision > revision })
	if at > 0 && of[at-1].Type == clientv3.EventTypePut {
		return of[at-1].Kv.ModRevision
	}
	return 0
}

// has says whether a revision is exactly these writes.
func (h *hopHistory) has(revision int64, wrote map[string]string) bool {
	for _, e := range h.at[revision] {
		value, there := wrote[string(e.Kv.Key)]
		if !there || value != string(e.Kv.Value) || (value == "") != (e.Type == clientv3.EventTypeDelete) {
			return false
		}
	}
	return len(h.at[revision]) == len(wrote)
}

// === the comparison ===

// verdict is the result of a comparison.
type verdict struct {
	wrong   []string
	figures map[string]int
}

func (v *verdict) finds(format string, args ...any) {
	v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
}

// compare holds what was seen in a round against the history, and forgets both.
func (h *hops) compare(end int64) {
	eventually(h.t, "the history is complete", func() bool { return h.history.collect(h.m.kept[0].server, 20*time.Second) })
	// A write whose answer is lost may arrive later than the last one, and is of the next round then.
	until := func(events []*clientv3.Event) int {
		return sort.Search(len(events), func(i int) bool { return events[i].Kv.ModRevision > end })
	}
	late := slices.Clone(h.history.events[until(h.history.events):])
	h.history.events = h.history.events[:until(h.history.events)]
	v := &verdict{figures: h.figures}
	h.history.index(v)
	for _, w := range h.watches {
		at := until(w.events)
		h.history.compareWatch(v, w, w.events[:at])
		v.figures["events"] += at
		w.events = slices.Clone(w.events[at:])
	}
	h.history.compareCalls(v, h.calls)
	for _, text := range v.wrong[:min(len(v.wrong), 10)] {
		h.t.Error(text)
	}
	h.calls = nil
	h.history.events, h.history.before = late, end
	v.figures["late writes"] += len(late)
}

func (h *hopHistory) compareWatch(v *verdict, w *hopWatch, events []*clientv3.Event) {
	if w.err != nil {
		v.finds("%s: %v", w.name, w.err)
		return
	}
	var want []*clientv3.Event
	for _, e := range h.events {
		wanted := w.puts
		if e.Type == clientv3.EventTypeDelete {
			wanted = w.dels
		}
		if wanted && strings.HasPrefix(string(e.Kv.Key), w.prefix) {
			want = append(want, e)
		}
	}
	for i := range min(len(want), len(events)) {
		if got, want := hopText(events[i], w.prev), hopText(want[i], w.prev); got != want {
			v.finds("%s: event %d is\n%s, expected\n%s", w.name, i, got, want)
			return
		}
	}
	if len(want) != len(events) {
		v.finds("%s: %d events, expected %d", w.name, len(events), len(want))
	}
}

func hopText(e *clientv3.Event, prev bool) string {
	text := fmt.Sprintf("%v create %v %s", e.Type, e.IsCreate(), kvs(e.Kv))
	if prev {
		text += " prev " + kvs(e.PrevKv)
	}
	return text
}

// compareCalls checks each call by itself, and then their order.
func (h *hopHistory) compareCalls(v *verdict, calls []call) {
	for i := range calls {
		switch a := &calls[i]; {
		case a.err != nil:
			v.figures["calls failed"]++
			h.compareFailed(v, a)
		case a.serializable && a.revision < h.before:
			// The answer is of a round before: true or not, nobody knows any more.
		default:
			v.figures["calls answered"]++
			h.compareAnswer(v, a)
		}
	}
	for value, text := range h.refused {
		if revision := h.written[value]; revision > 0 && value != "" {
			v.finds("the write at revision %d was executed, although it was refused: %v", revision, text)
		}
	}
	h.compareOrder(v, calls)
}

func (h *hopHistory) compareAnswer(v *verdict, a *call) {
	if want := h.changed(a.key, a.revision); a.read && want != a.mod {
		v.finds("%s: %s at revision %d was changed last at %d, expected %d", a.where, a.key, a.revision, a.mod, want)
	}
	before := a.revision
	if a.wrote != nil {
		before--
		if !h.has(a.revision, a.wrote) {
			v.finds("%s: revision %d is not the write of %v, but %v", a.where, a.revision, a.wrote, h.at[a.revision])
		}
	}
	if held := h.changed(a.key, before) == a.expected; a.conditional && held != (a.wrote != nil) {
		v.finds("%s: at revision %d, the condition that %s was changed last at %d was %v", a.where, a.revision, a.key, a.expected, held)
	}
}

// compareFailed finds the revision of a write whose answer was lost, if there is one.
func (h *hopHistory) compareFailed(v *verdict, a *call) {
	value := ""
	for _, value = range a.wrote {
		a.revision = h.written[value]
	}
	if text := a.err.Error(); strings.Contains(text, "there is no connection available") || strings.Contains(text, "there is no address available") {
		h.refused[value] = text
	}
	if a.revision == 0 {
		return
	}
	v.figures["calls failed and executed"]++
	if !h.has(a.revision, a.wrote) {
		v.finds("%s: revision %d is not the whole write of %v, but %v", a.where, a.revision, a.wrote, h.at[a.revision])
	}
}

// compareOrder checks that revisions do not go back.
func (h *hopHistory) compareOrder(v *verdict, calls []call) {
	var began, ended []*call
	for i := range calls {
		// Of a write whose answer was lost, only the earliest time is known.
		if a := &calls[i]; a.revision > 0 {
			began = append(began, a)
			if a.err == nil {
				ended = append(ended, a)
			}
		}
	}
	sort.Slice(began, func(i, j int) bool { return began[i].began.Before(began[j].began) })
	sort.Slice(ended, func(i, j int) bool { return ended[i].ended.Before(ended[j].ended) })
	highest := &call{revision: h.before, where: "the round before"}
	next := 0
	for _, a := range began {
		for ; next < len(ended) && ended[next].ended.Before(a.began); next++ {
			if ended[next].revision > highest.revision {
				highest = ended[next]
			}
		}
		least := highest.revision
		if a.wrote != nil {
			least++
		}
		if a.revision < least && !a.serializable {
			v.finds("%s answered with revision %d, after %s had answered with revision %d", a.where, a.revision, highest.where, highest.revision)
		}
	}
}

// === the comparison itself ===

// TestReplicasComparison gives the comparison a history and calls in which one thing is wrong, and asks for exactly this finding.
func TestReplicasComparison(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	put := func(revision int64, key, value string, mod int64) *clientv3.Event {
		return &clientv3.Event{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: revision, CreateRevision: mod}}
	}
	gone := func(revision int64, key string) *clientv3.Event {
		return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}}
	}
	write := func(began, ended int, revision int64, wrote map[string]string) call {
		return call{began: at(began), ended: at(ended), revision: revision, wrote: wrote}
	}
	read := func(began, ended int, revision int64, key string, mod int64) call {
		return call{began: at(began), ended: at(ended), revision: revision, read: true, key: key, mod: mod}
	}
	events := []*clientv3.Event{put(11, "a", "1", 11), put(12, "a", "2", 11), put(12, "b", "2", 12), gone(13, "a"), put(14, "a", "3", 14)}
	one := map[string]string{"a": "1"}
	lost := errors.New("request timed out")
	for name, c := range map[string]struct {
		events []*clientv3.Event
		calls  []call
		want   string
	}{
		"nothing": {events, []call{write(1, 2, 11, one), write(1, 9, 12, map[string]string{"a": "2", "b": "2"}), read(3, 4, 12, "b", 12),
			write(5, 6, 13, map[string]string{"a": ""}), read(5, 8, 13, "a", 0), {began: at(5), err: lost, wrote: map[string]string{"a": "3"}},
			{began: at(9), ended: at(10), revision: 11, serializable: true, read: true, key: "a", mod: 11}, {began: at(1), err: lost, wrote: map[string]string{"c": "0"}}}, ""},
		"a stale read":       {events, []call{write(1, 2, 12, map[string]string{"a": "2", "b": "2"}), read(3, 4, 11, "a", 11)}, "after "},
		"another value":      {events, []call{read(1, 2, 12, "a", 11)}, "was changed last at 11, expected 12"},
		"a ghost":            {events, []call{read(1, 2, 13, "a", 12)}, "was changed last at 12, expected 0"},
		"a lost write":       {events[1:], []call{write(1, 2, 11, one)}, "is not the write of"},
		"a part of a write":  {events, []call{write(1, 2, 12, map[string]string{"a": "2"})}, "is not the write of"},
		"a lost part":        {events, []call{{began: at(1), err: lost, wrote: map[string]string{"a": "1", "c": "1"}}}, "is not the whole write of"},
		"twice":              {append(slices.Clone(events), put(15, "a", "3", 14)), nil, "is there twice"},
		"refused and done":   {events, []call{{began: at(1), err: errors.New("there is no connection available"), wrote: one}}, "although it was refused"},
		"a wrong condition":  {events, []call{{began: at(1), ended: at(2), revision: 14, key: "a", conditional: true, expected: 12, wrote: map[string]string{"a": "3"}}}, "the condition"},
		"a write too early":  {events, []call{read(1, 2, 12, "b", 12), {began: at(3), err: lost, wrote: one}}, "answered with revision 11"},
		"the round before":   {events, []call{read(1, 2, 9, "a", 0)}, "the round before had answered with revision 10"},
		"an answer repeated": {events, []call{write(1, 2, 11, one), {began: at(3), ended: at(4), revision: 11, wrote: one}}, "answered with revision 11"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hopHistory{events: c.events, before: 10}
			v := &verdict{figures: map[string]int{}}
			h.index(v)
			h.compareCalls(v, c.calls)
			switch {
			case c.want == "" && len(v.wrong) > 0, c.want != "" && len(v.wrong) != 1, c.want != "" && !strings.Contains(v.wrong[0], c.want):
				t.Errorf("findings %q, expected %q", v.wrong, c.want)
			}
		})
	}
}
