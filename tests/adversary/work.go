package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// workRows ask for much work with few bytes, with the rights of a reader or a writer.
var workRows = []row{
	{
		name: "work-compares-read", what: "an 88 KB read-only transaction with 4,160 nested compares, each over all keys",
		fixture: fixture{big: true},
		attack:  func(a *attacker) error { return a.compares("reader", nil) },
	},
	{
		name: "work-compares-write", what: "the same, in a transaction that also puts",
		fixture: fixture{big: true},
		attack: func(a *attacker) error {
			return a.compares("writer", &pb.PutRequest{Key: []byte("w/compared"), Value: []byte("x")})
		},
	},
	{
		name: "work-txn-reads", what: "a small read-only transaction that reads everything twenty times",
		fixture: fixture{big: true},
		attack:  txnReads,
	},
	{
		name: "work-progress", what: "2,000 progress requests on a stream with 50,000 watches, again and again",
		fixture: fixture{big: true},
		attack:  progressRequests,
	},
	{
		name: "work-lease-puts", what: "512 puts at once on a lease with 100,000 keys, again and again",
		fixture: fixture{leased: true},
		attack:  leasePuts,
	},
	{
		name: "work-ranges-cancelled", what: "64 ranges of everything at once, cancelled at random, again and again",
		fixture: fixture{big: true},
		attack:  rangesCancelled,
	},
	{
		name: "work-count-old", what: "counts at an old revision with many changes since, 32 at once",
		fixture: fixture{big: true},
		attack:  countOld,
	},
	{
		name: "work-sort", what: "sorts of everything by value, for one key, 8 at once",
		fixture: fixture{big: true},
		attack: func(a *attacker) error {
			a.begin()
			request := &pb.RangeRequest{Key: []byte("big/"), RangeEnd: endOf("big/"), Limit: 1,
				SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND}
			return a.ranges(8, "reader", request)
		},
	},
	{
		name: "work-txn-chain", what: "transactions of 160,000 puts, 48 levels deep, from a certificate that is no user",
		full: true,
		// A server that collects the keys of each level anew, to find keys that are put twice, works 48 times.
		attack: func(a *attacker) error { return a.trees("nobody", 4, 2, chain(44, tree(20, 4, puts()))) },
	},
	{
		name: "work-txn-chain-reader", what: "the same, from a reader, who may not put",
		full:   true,
		attack: func(a *attacker) error { return a.trees("reader", 4, 2, chain(44, tree(20, 4, puts()))) },
	},
	{
		name: "work-txn-tiny", what: "read-only transactions of 230,000 ranges of one key, 2 on each of 10 connections",
		full: true,
		attack: func(a *attacker) error {
			get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("w")}}}
			return a.trees("reader", 10, 2, tree(22, 4, func() *pb.RequestOp { return get }))
		},
	},
	{
		name: "work-txn-empty", what: "read-only transactions of 280,000 empty transactions, 2 on each of 10 connections",
		full: true,
		attack: func(a *attacker) error {
			empty := nested(&pb.TxnRequest{})
			return a.trees("reader", 10, 2, tree(23, 4, func() *pb.RequestOp { return empty }))
		},
	},
	{
		name: "work-stream", what: "streamed ranges of everything, 100 on each of 10 connections",
		full:     true,
		fixture:  fixture{big: true},
		oursOnly: true,
		attack: func(a *attacker) error {
			a.begin()
			a.calls(10, 100, "reader", pathRangeStream, message(everything()))
			return nil
		},
	},
}

// everything is the range of all filled keys.
func everything() *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte("big/"), RangeEnd: endOf("big/")}
}

// compares sends nested transactions of 64 + 64 × 64 compares.
func (a *attacker) compares(common string, put *pb.PutRequest) error {
	all := make([]*pb.Compare, 64)
	for i := range all {
		all[i] = &pb.Compare{Key: []byte("big/"), RangeEnd: endOf("big/"), Target: pb.Compare_CREATE, Result: pb.Compare_GREATER,
			TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 0}}
	}
	txn := &pb.TxnRequest{Compare: all}
	for i := range 64 {
		inner := &pb.TxnRequest{Compare: all}
		if put != nil && i == 0 {
			inner.Success = []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}}
		}
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}})
	}
	kv := pb.NewKVClient(a.grpc(common))
	a.set("bytes in the request", proto.Size(txn))
	a.begin()
	a.each(2, func(int) error {
		_, err := kv.Txn(a.ctx, txn)
		if err == nil {
			a.count("answers", 1)
		}
		return err
	})
	return nil
}

// txnReads reads everything twenty times in one transaction. Nothing is kept of the answers.
func txnReads(a *attacker) error {
	txn := &pb.TxnRequest{}
	for range 20 {
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: everything()}})
	}
	a.set("bytes in the request", proto.Size(txn))
	a.begin()
	a.calls(1, 1, "reader", pathTxn, message(txn))
	return nil
}

// nested is a transaction as an operation of another.
func nested(txn *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}
}

// tree is a transaction whose operations are transactions, down to width^depth leaves.
func tree(width, depth int, leaf func() *pb.RequestOp) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range width {
		if depth == 1 {
			txn.Success = append(txn.Success, leaf())
		} else {
			txn.Success = append(txn.Success, nested(tree(width, depth-1, leaf)))
		}
	}
	return txn
}

// chain wraps a transaction n times.
func chain(n int, txn *pb.TxnRequest) *pb.TxnRequest {
	for range n {
		txn = &pb.TxnRequest{Success: []*pb.RequestOp{nested(txn)}}
	}
	return txn
}

// puts makes puts of distinct short keys: a transaction may put a key only once.
func puts() func() *pb.RequestOp {
	n := 0
	return func() *pb.RequestOp {
		n++
		put := &pb.PutRequest{Key: fmt.Appendf(nil, "%05x", n)}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	}
}

// trees repeats a transaction, n at once on each of the connections.
func (a *attacker) trees(common string, connections, n int, txn *pb.TxnRequest) error {
	request := message(txn)
	a.set("bytes in the request", len(request))
	a.begin()
	a.calls(connections, n, common, pathTxn, request)
	return nil
}

// ranges repeats a call on one connection, n at once.
func (a *attacker) ranges(n int, common string, request *pb.RangeRequest) error {
	kv := pb.NewKVClient(a.grpc(common))
	a.each(n, func(int) error {
		_, err := kv.Range(a.ctx, request)
		if err == nil {
			a.count("answers", 1)
		}
		return err
	})
	return nil
}

// createWatches creates n watches on a new stream, a hundred at a time: pipelining more is another attack. Later messages are
// given to `on`.
func (a *attacker) createWatches(n int, request func(i int) *pb.WatchRequest, on func(*pb.WatchResponse)) (pb.Watch_WatchClient, error) {
	watch, err := pb.NewWatchClient(a.grpc("reader")).Watch(context.Background())
	if err != nil {
		return nil, err
	}
	const batch = 100
	for i := range n {
		if err := watch.Send(request(i)); err != nil {
			break // Recv returns the reason.
		}
		if i%batch != batch-1 && i != n-1 {
			continue
		}
		for range i%batch + 1 {
			if got, err := watch.Recv(); err != nil || !got.Created || got.Canceled {
				return nil, fmt.Errorf("watch %d of %d is refused: %v %w", i, n, got, err)
			}
		}
	}
	go func() {
		for {
			got, err := watch.Recv()
			if err != nil {
				a.count("× "+short(err), 1)
				return
			}
			on(got)
		}
	}()
	return watch, nil
}

func progressRequests(a *attacker) error {
	watch, err := a.createWatches(a.Scale.of(20_000, 50_000),
		func(i int) *pb.WatchRequest { return createWatch(fmt.Appendf(nil, "big/%08d", i), nil) },
		func(*pb.WatchResponse) { a.count("answers", 1) })
	if err != nil {
		return err
	}
	a.begin()
	for !a.over() {
		for range 2000 {
			request := &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
			if err := watch.Send(&pb.WatchRequest{RequestUnion: request}); err != nil {
				return nil
			}
		}
		a.count("requests", 2000)
		a.rest(10 * time.Millisecond)
	}
	return nil
}

// createWatch asks for a watch of a range.
func createWatch(key, end []byte) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key, RangeEnd: end}}}
}

func leasePuts(a *attacker) error {
	kv := pb.NewKVClient(a.grpc("writer"))
	a.begin()
	a.each(512, func(i int) error {
		_, err := kv.Put(a.ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "w/leased/%d", i), Lease: leasedID})
		if err == nil {
			a.count("answers", 1)
		}
		return err
	})
	return nil
}

// leaseKeys attaches n keys to a new lease.
func leaseKeys(ctx context.Context, conn *grpc.ClientConn, n int) error {
	if _, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: leasedID, TTL: 36_000}); err != nil {
		return err
	}
	kv := pb.NewKVClient(conn)
	for start := 0; start < n; start += 128 {
		txn := &pb.TxnRequest{}
		for i := start; i < min(n, start+128); i++ {
			put := &pb.PutRequest{Key: fmt.Appendf(nil, "w/lease/%08d", i), Value: []byte("x"), Lease: leasedID}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		if _, err := kv.Txn(ctx, txn); err != nil {
			return err
		}
	}
	return nil
}

func rangesCancelled(a *attacker) error {
	kv := pb.NewKVClient(a.grpc("reader", grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<22)))
	a.begin()
	a.each(64, func(int) error {
		ctx, cancel := context.WithTimeout(a.ctx, rand.N(200*time.Millisecond))
		defer cancel()
		if _, err := kv.Range(ctx, everything()); err == nil {
			a.count("answers", 1)
		} else {
			a.count("cancelled", 1)
		}
		return nil
	})
	return nil
}

func countOld(a *attacker) error {
	conn := a.grpc("writer")
	kv := pb.NewKVClient(conn)
	got, err := kv.Range(a.ctx, &pb.RangeRequest{Key: []byte("big/"), RangeEnd: endOf("big/"), CountOnly: true})
	if err != nil {
		return err
	}
	// Changes since: half of the keys, and as many revisions as transactions.
	if err := fill(a.ctx, conn, "big/", int(got.Count/2), 100); err != nil {
		return err
	}
	if err := fill(a.ctx, conn, "w/more/", int(got.Count), 10); err != nil {
		return err
	}
	a.begin()
	return a.ranges(32, "reader", &pb.RangeRequest{Key: []byte("big/"), RangeEnd: endOf("big/"), CountOnly: true, Revision: got.Header.Revision})
}

// calls repeats a call over raw HTTP/2, n at once on each of the connections, and drops the answers. The messages are not decoded,
// so that the attacker is cheap.
func (a *attacker) calls(connections, n int, common, path string, request []byte) {
	a.each(connections, func(int) error {
		ended := make(chan struct{}, n)
		c, err := a.h2(common, h2options{settings: wideWindows, on: func(f http2.Frame) {
			if endsStream(f) {
				select {
				case ended <- struct{}{}:
				default:
				}
			}
			a.bytes(f)
		}})
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			ended <- struct{}{}
		}
		for {
			select {
			case <-a.ctx.Done():
				return nil
			case <-ended:
				if _, err := c.call(path, request, true); err != nil {
					return err
				}
				a.count("calls", 1)
			case <-time.After(time.Second):
				if err := c.ended(); err != nil {
					return err
				}
			}
		}
	})
}
