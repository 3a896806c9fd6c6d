package interop

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// The calls of the differential walk on keys and leases.

// === KV ===

func (w *walk) putRequest() *pb.PutRequest {
	q := &pb.PutRequest{Key: w.key(), Value: w.value(), PrevKv: w.chance(30)}
	if w.chance(20) {
		q.Lease = w.leaseID()
	}
	if w.chance(8) {
		q.IgnoreValue = true
		if w.chance(80) {
			q.Value = nil
		}
	}
	if w.chance(8) {
		q.IgnoreLease = true
		if w.chance(80) {
			q.Lease = 0
		}
	}
	return q
}

func (w *walk) put() *pb.ResponseHeader {
	r, _ := both(w, "put", w.putRequest(), (*side).Put, func(r *pb.PutResponse) string { return fmt.Sprintf("%s prev %s", head(r.Header), kvs(r.PrevKv)) })
	return r[0].GetHeader()
}

func (w *walk) rangeRequest() *pb.RangeRequest {
	q := &pb.RangeRequest{Key: w.key(), Revision: w.atRevision(), Serializable: w.chance(20)}
	q.RangeEnd = w.rangeEnd(q.Key)
	if w.chance(40) {
		q.Limit = pick(w, int64(-3), 1, 2, 3, 100)
	}
	if w.chance(30) {
		q.SortOrder = pb.RangeRequest_SortOrder(w.rng.IntN(3))
		q.SortTarget = pb.RangeRequest_SortTarget(w.rng.IntN(5))
	}
	if w.chance(2) {
		q.SortOrder = 7
	}
	q.KeysOnly, q.CountOnly = w.chance(15), w.chance(15)
	for _, bound := range []*int64{&q.MinModRevision, &q.MaxModRevision, &q.MinCreateRevision, &q.MaxCreateRevision} {
		if w.chance(6) {
			*bound = w.rng.Int64N(w.revision + 2)
		}
	}
	return q
}

func (w *walk) get() {
	q := w.rangeRequest()
	show := func(r *pb.RangeResponse) string {
		if w.before37 && q.KeysOnly {
			for _, kv := range r.Kvs {
				kv.Lease = 0
			}
		}
		return rangeText(q, r)
	}
	if w.before37 || w.chance(60) {
		both(w, "range", q, (*side).Range, show)
		return
	}
	if q.SortOrder == pb.RangeRequest_NONE {
		q.SortTarget = pb.RangeRequest_KEY
	}
	both(w, "range stream", q, (*side).rangeStream, show)
}

// rangeStream merges the answers of a range stream, which makes them the answer of a range.
func (s *side) rangeStream(ctx context.Context, q *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	stream, err := s.RangeStream(ctx, q)
	if err != nil {
		return nil, err
	}
	whole := &pb.RangeResponse{}
	for {
		chunk, err := stream.Recv()
		if err == io.EOF {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		if whole.Header != nil {
			return nil, fmt.Errorf("a chunk follows the chunk with the header")
		}
		proto.Merge(whole, chunk.RangeResponse)
	}
}

// rangeText renders an answer without what a sort leaves open: where a limit has chosen among equal keys, only the field
// sorted by is shown of them.
func rangeText(q *pb.RangeRequest, r *pb.RangeResponse) string {
	text := fmt.Sprintf("%s count %d more %v", head(r.Header), r.Count, r.More)
	list := r.Kvs
	if q.GetSortTarget() != pb.RangeRequest_KEY {
		var fields []string
		for _, kv := range list {
			fields = append(fields, sortField(q.SortTarget, kv))
		}
		text += fmt.Sprint(" by ", fields)
		if r.More {
			return text
		}
		list = append([]*mvccpb.KeyValue{}, list...)
		sort.Slice(list, func(i, j int) bool { return string(list[i].Key) < string(list[j].Key) })
	}
	return text + " " + kvs(list...)
}

func sortField(target pb.RangeRequest_SortTarget, kv *mvccpb.KeyValue) string {
	switch target {
	case pb.RangeRequest_VERSION:
		return fmt.Sprint(kv.Version)
	case pb.RangeRequest_CREATE:
		return fmt.Sprint(kv.CreateRevision)
	case pb.RangeRequest_MOD:
		return fmt.Sprint(kv.ModRevision)
	default:
		return string(kv.Value)
	}
}

func (w *walk) delete() *pb.ResponseHeader {
	q := &pb.DeleteRangeRequest{Key: w.key(), PrevKv: w.chance(40)}
	if w.chance(25) {
		q.RangeEnd = w.rangeEnd(q.Key)
	}
	r, _ := both(w, "delete", q, (*side).DeleteRange, deleteText)
	return r[0].GetHeader()
}

func deleteText(r *pb.DeleteRangeResponse) string {
	return fmt.Sprintf("%s deleted %d %s", head(r.Header), r.Deleted, kvs(r.PrevKvs...))
}

func (w *walk) txnRequest(depth int) *pb.TxnRequest {
	q := &pb.TxnRequest{}
	for range w.rng.IntN(3) {
		c := &pb.Compare{Result: pb.Compare_CompareResult(w.rng.IntN(4)), Key: w.key()}
		if w.chance(20) {
			c.RangeEnd = w.rangeEnd(c.Key)
		}
		n := pick(w, int64(0), 1, 2, w.revision, w.revision/2)
		switch c.Target = pb.Compare_CompareTarget(w.rng.IntN(5)); c.Target {
		case pb.Compare_VERSION:
			c.TargetUnion = &pb.Compare_Version{Version: n}
		case pb.Compare_CREATE:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
		case pb.Compare_MOD:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
		case pb.Compare_LEASE:
			c.TargetUnion = &pb.Compare_Lease{Lease: n}
		default:
			c.TargetUnion = &pb.Compare_Value{Value: w.value()}
		}
		if w.chance(5) {
			c.TargetUnion = nil
		}
		q.Compare = append(q.Compare, c)
	}
	for _, branch := range []*[]*pb.RequestOp{&q.Success, &q.Failure} {
		for range w.rng.IntN(4) {
			*branch = append(*branch, w.op(depth))
		}
	}
	if w.chance(1) {
		for range 17 {
			q.Success = append(q.Success, w.op(0))
		}
	}
	return q
}

func (w *walk) op(depth int) *pb.RequestOp {
	switch n := w.rng.IntN(20); {
	case n < 8:
		q := w.putRequest()
		if w.before37 && q.IgnoreValue {
			q.Lease = 0
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: q}}
	case n < 13:
		q := w.rangeRequest()
		// A limit may cut equal keys anywhere, and the answer does not say which request a part belongs to.
		q.SortTarget = pb.RangeRequest_KEY
		q.KeysOnly = q.KeysOnly && !w.before37
		if w.before37 && w.above {
			// In etcd 3.6, only the member that proposed a transaction looks at its ranges. If one asks for a revision that is not there,
			// this member refuses the transaction, and the others carry out its writes.
			q.Revision = 0
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: q}}
	case n < 17 || depth == 0:
		q := &pb.DeleteRangeRequest{Key: w.key(), PrevKv: w.chance(30)}
		if w.chance(30) {
			q.RangeEnd = w.rangeEnd(q.Key)
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: q}}
	case n < 19:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: w.txnRequest(depth - 1)}}
	default:
		return &pb.RequestOp{}
	}
}

func (w *walk) txn() *pb.ResponseHeader {
	q := w.txnRequest(2)
	if w.enabled && len(q.Compare)+len(q.Success)+len(q.Failure) == 0 {
		return nil
	}
	r, _ := both(w, "txn", q, (*side).Txn, txnText)
	return r[0].GetHeader()
}

func txnText(r *pb.TxnResponse) string {
	text := fmt.Sprintf("%s %v", head(r.Header), r.Succeeded)
	for _, op := range r.Responses {
		switch op := op.Response.(type) {
		case *pb.ResponseOp_ResponsePut:
			text += fmt.Sprintf(" put(%s %s)", head(op.ResponsePut.Header), kvs(op.ResponsePut.PrevKv))
		case *pb.ResponseOp_ResponseRange:
			text += fmt.Sprintf(" range(%s)", rangeText(nil, op.ResponseRange))
		case *pb.ResponseOp_ResponseDeleteRange:
			text += fmt.Sprintf(" delete(%s)", deleteText(op.ResponseDeleteRange))
		case *pb.ResponseOp_ResponseTxn:
			text += fmt.Sprintf(" txn(%s)", txnText(op.ResponseTxn))
		}
	}
	return text
}

func (w *walk) compact() {
	// A compaction could remove, at one side only, previous values of events that are on their way.
	w.sync()
	if w.watched {
		// etcd serves watchers of the past in intervals, and only its metrics show when it has done so.
		eventually(w.t, "etcd has no watcher that is behind", func() bool {
			r, err := http.Get("http://" + w.sides[0].address + "/metrics")
			if err != nil {
				return false
			}
			defer r.Body.Close()
			text, err := io.ReadAll(r.Body)
			return err == nil && strings.Contains(string(text), "\netcd_debugging_mvcc_slow_watcher_total 0\n")
		})
		w.sync()
		w.watched = false
	}
	at := w.revision - w.rng.Int64N(min(w.revision+1, 40))
	if w.chance(20) {
		at = pick(w, int64(0), -1, w.compacted, w.revision+1)
	}
	q := &pb.CompactionRequest{Revision: at, Physical: true}
	_, ok := both(w, "compact", q, (*side).Compact, func(r *pb.CompactionResponse) string { return head(r.Header) })
	if ok {
		w.compacted, w.hashed[at] = at, true
	}
}

// === leases ===

func (w *walk) leases() {
	id := w.leaseID()
	if id == 0 {
		id = 9
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		q := &pb.LeaseGrantRequest{ID: id, TTL: pick(w, int64(5000), 9000, 9_000_000_001)}
		both(w, "grant", q, (*side).LeaseGrant, func(r *pb.LeaseGrantResponse) string {
			return fmt.Sprintf("%s %d %d %s", head(r.Header), r.ID, r.TTL, r.Error)
		})
	case 2:
		r, _ := both(w, "revoke", &pb.LeaseRevokeRequest{ID: id}, (*side).LeaseRevoke, func(r *pb.LeaseRevokeResponse) string { return head(r.Header) })
		w.seen(r[0].GetHeader())
	case 3:
		q := &pb.LeaseTimeToLiveRequest{ID: id, Keys: w.chance(60)}
		both(w, "ttl", q, (*side).LeaseTimeToLive, func(r *pb.LeaseTimeToLiveResponse) string {
			var names []string
			for _, k := range r.Keys {
				names = append(names, fmt.Sprintf("%q", k))
			}
			sort.Strings(names)
			return fmt.Sprintf("%s %d granted %d left %v keys %v", head(r.Header), r.ID, r.GrantedTTL, r.TTL > 0, names)
		})
	case 4:
		both(w, "leases", &pb.LeaseLeasesRequest{}, (*side).LeaseLeases, func(r *pb.LeaseLeasesResponse) string {
			var ids []int64
			for _, l := range r.Leases {
				ids = append(ids, l.ID)
			}
			sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
			return fmt.Sprint(head(r.Header), ids)
		})
	default:
		both(w, "keepalive", &pb.LeaseKeepAliveRequest{ID: id}, (*side).keepAlive, func(r *pb.LeaseKeepAliveResponse) string { return fmt.Sprintf("%s %d %d", head(r.Header), r.ID, r.TTL) })
	}
}

func (s *side) keepAlive(ctx context.Context, q *pb.LeaseKeepAliveRequest, _ ...grpc.CallOption) (*pb.LeaseKeepAliveResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(q); err != nil {
		return nil, err
	}
	return stream.Recv()
}
