package interop

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

// The watch streams of the differential walk.

// stream is a watch stream with the events it has brought, by watcher.
type stream struct {
	pb.Watch_WatchClient
	in     chan *pb.WatchResponse
	events map[int64][]string
}

func (w *walk) watches() {
	if len(w.sides[0].streams) == 0 || (len(w.sides[0].streams) < 4 && w.chance(10)) {
		for _, s := range w.sides {
			c, cancel := context.WithCancel(context.Background())
			w.t.Cleanup(cancel)
			if token := s.tokens["root"]; token != "" {
				c = metadata.AppendToOutgoingContext(c, "token", token)
			}
			opened, err := s.Watch(c)
			if err != nil {
				w.t.Fatal(err)
			}
			in := make(chan *pb.WatchResponse, 1024)
			go func() {
				defer close(in)
				for {
					r, err := opened.Recv()
					if err != nil {
						return
					}
					in <- r
				}
			}()
			s.streams = append(s.streams, &stream{Watch_WatchClient: opened, in: in, events: map[int64][]string{}})
		}
	}
	at := w.rng.IntN(len(w.sides[0].streams))
	if w.chance(25) {
		cancel := &pb.WatchCancelRequest{WatchId: int64(w.rng.IntN(6))}
		w.sync()
		w.ask(at, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}})
		w.sync()
		return
	}
	create := &pb.WatchCreateRequest{
		Key: w.key(), StartRevision: w.atRevision(), PrevKv: w.chance(50), Fragment: w.chance(20),
	}
	create.RangeEnd = w.rangeEnd(create.Key)
	if w.chance(20) {
		create.WatchId = int64(w.rng.IntN(6))
	}
	for _, f := range []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE} {
		if w.chance(15) {
			create.Filters = append(create.Filters, f)
		}
	}
	w.ask(at, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	w.watched = true
	var answers [2]string
	for i, s := range w.sides {
		r := w.receive(s, s.streams[at], func(r *pb.WatchResponse) bool { return r.Created })
		answers[i] = fmt.Sprintf("id %d created %v canceled %v %q compacted %d", r.WatchId, r.Created, r.Canceled, r.CancelReason, r.CompactRevision)
	}
	w.trail = append(w.trail, "-> "+answers[0])
	if answers[0] != answers[1] {
		w.t.Errorf("watch %v\netcd: %s\nours: %s", create, answers[0], answers[1])
	}
	// A watcher of the past must be served before a compaction removes its events.
	w.sync()
}

func (w *walk) ask(at int, q *pb.WatchRequest) {
	w.trail = append(w.trail, fmt.Sprintf("watch stream %d {%v}", at, q))
	for _, s := range w.sides {
		if err := s.streams[at].Send(q); err != nil {
			w.t.Fatalf("%s: %v", s.Name, err)
		}
	}
}

// receive reads responses from a stream and keeps their events, until a response is wanted.
func (w *walk) receive(s *side, st *stream, wanted func(*pb.WatchResponse) bool) *pb.WatchResponse {
	for deadline := time.After(patience); ; {
		select {
		case r, ok := <-st.in:
			if !ok {
				w.t.Fatalf("%s ended a watch stream", s.Name)
			}
			w.keep(st, r)
			if wanted(r) {
				return r
			}
		case <-deadline:
			w.t.Fatalf("%s: no answer on a watch stream; the last calls were:\n%s", s.Name, strings.Join(w.trail, "\n"))
		}
	}
}

// sync waits until all streams have brought every event, and compares them. A watcher of a key of its own shows how far
// a stream is: progress requests do not help, because etcd answers them only when all watchers are synced, and watchers
// of future revisions never are.
func (w *walk) sync() {
	for at := range w.sides[0].streams {
		var seen [2]map[int64][]string
		for _, s := range w.sides {
			st := s.streams[at]
			// The response to a create comes after all events that were ready before it. Events of an earlier watcher of the
			// past come before the cancellation of a watcher that was made after it.
			probe := &pb.WatchCreateRequest{Key: []byte("\x00"), StartRevision: max(w.compacted, 1), WatchId: 1000}
			q := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: probe}}
			if err := st.Send(q); err != nil {
				w.t.Fatalf("%s: %v", s.Name, err)
			}
			if made := w.receive(s, st, func(r *pb.WatchResponse) bool { return r.Created }); made.Canceled {
				// The stream was opened before authentication was enabled, so it may not create watchers any more.
				continue
			}
			cancel := &pb.WatchCancelRequest{WatchId: 1000}
			q = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}}
			if err := st.Send(q); err != nil {
				w.t.Fatalf("%s: %v", s.Name, err)
			}
			w.receive(s, st, func(r *pb.WatchResponse) bool { return r.Canceled && r.WatchId == 1000 })
			delete(st.events, 1000)
		}
		// Events may still be on their way: the two sides must become equal.
		equal := func() bool {
			for i, s := range w.sides {
				for drained := false; !drained; {
					select {
					case r, ok := <-s.streams[at].in:
						if !ok {
							w.t.Fatalf("%s ended a watch stream", s.Name)
						}
						w.keep(s.streams[at], r)
					default:
						drained = true
					}
				}
				seen[i] = s.streams[at].events
			}
			return fmt.Sprint(seen[0]) == fmt.Sprint(seen[1])
		}
		for deadline := time.Now().Add(5 * time.Second); !equal(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				w.t.Errorf("watch stream %d\netcd: %v\nours: %v", at, seen[0], seen[1])
				return
			}
		}
		for _, list := range seen[0] {
			w.events += len(list)
		}
		for _, s := range w.sides {
			clear(s.streams[at].events)
		}
	}
}

func (w *walk) keep(st *stream, r *pb.WatchResponse) {
	for _, e := range r.Events {
		st.events[r.WatchId] = append(st.events[r.WatchId], fmt.Sprintf("%v %s prev %s", e.Type, kvs(e.Kv), kvs(e.PrevKv)))
	}
	if r.Canceled && !r.Created {
		text := fmt.Sprintf("canceled %q compacted %d", r.CancelReason, r.CompactRevision)
		st.events[r.WatchId] = append(st.events[r.WatchId], text)
	}
}
