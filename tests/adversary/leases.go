package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

var leaseRows = []row{{
	name: "leases-expire", what: "200,000 leases (full: 1,000,000), one in ten with a key, that expire in the same second; twenty leases of 5 s beside",
	seconds: [2]float64{9, 12},
	// The budget of one user is a tenth of what this row needs.
	fixture: fixture{isthmus: "--max-leases-per-user=2000000"},
	attack:  leasesExpire,
}, {
	name: "leases-refused", what: "grants of a user who has 100,000 leases, and may have no more, 200 on each of 2 connections",
	full:   true,
	attack: leasesRefused,
}}

// leasesRefused asks for leases that are over the budget of the user. The refusal must not cost a search of all leases.
func leasesRefused(a *attacker) error {
	lease := pb.NewLeaseClient(a.grpc("roleless"))
	request := &pb.LeaseGrantRequest{TTL: 3600}
	var granted atomic.Int64
	a.workers(64, func() bool {
		if granted.Add(1) > 100_000 {
			return false
		}
		_, err := lease.LeaseGrant(a.ctx, request)
		if err == nil {
			a.count("leases", 1)
		}
		return err == nil
	})
	a.begin()
	a.calls(2, 200, "roleless", pathGrant, message(request))
	return nil
}

// leasesExpire grants leases whose TTLs end in the same second, then leases of five seconds that end amid their expiry.
func leasesExpire(a *attacker) error {
	const streams = 64
	conn := a.grpc("writer")
	lease, kv := pb.NewLeaseClient(conn), pb.NewKVClient(conn)
	want := int64(a.Scale.of(200_000, 1_000_000))
	// A TTL has whole seconds. A server that grants slowly gets fewer leases.
	var granted atomic.Int64
	began := time.Now()
	end := began.Add(time.Duration(a.Scale.of(20, 180)) * time.Second)
	a.workers(streams, func() bool {
		n := granted.Add(1)
		ttl := int64(time.Until(end).Seconds())
		if n > want || ttl < 8 {
			return false
		}
		got, err := lease.LeaseGrant(a.ctx, &pb.LeaseGrantRequest{TTL: ttl})
		if err == nil && n%10 == 0 {
			_, err = kv.Put(a.ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "w/expires/%d", n), Lease: got.ID})
		}
		if err != nil {
			a.count("× "+short(err), 1)
		} else {
			a.count("leases", 1)
		}
		return true
	})
	// The short leases are granted four and a half seconds before the others end.
	time.Sleep(time.Until(end.Add(-4500 * time.Millisecond)))
	a.begin()
	root := pb.NewLeaseClient(a.grpc("root"))
	took, err := a.shortLease(conn)
	// Shows whether the lease had to wait behind others at all.
	if left, err := root.LeaseLeases(context.Background(), &pb.LeaseLeasesRequest{}); err == nil {
		a.set("leases left then", len(left.Leases))
	}
	switch {
	case errors.Is(err, errStays):
		a.fail("leases of 5 s were not gone after %.1f s", took.Seconds())
	case err != nil:
		return err
	case took > 6500*time.Millisecond:
		a.fail("leases of 5 s were gone after %.1f s", took.Seconds())
	}
	a.set("ms until the leases of 5 s were gone", int(took.Milliseconds()))
	<-a.ctx.Done()
	return nil
}

var errStays = errors.New("the lease stays")

// shortLease is the time until the keys on twenty leases of five seconds are gone. One lease alone might by luck be among the
// first that a server takes.
func (a *attacker) shortLease(conn *grpc.ClientConn) (time.Duration, error) {
	const count = 20
	lease, kv := pb.NewLeaseClient(conn), pb.NewKVClient(conn)
	watch, err := pb.NewWatchClient(conn).Watch(context.Background())
	if err != nil {
		return 0, err
	}
	if err := watch.Send(createWatch([]byte("w/short/"), endOf("w/short/"))); err != nil {
		return 0, err
	}
	if _, err := watch.Recv(); err != nil {
		return 0, err
	}
	start := time.Now()
	for i := range count {
		got, err := lease.LeaseGrant(a.ctx, &pb.LeaseGrantRequest{TTL: 5})
		if err != nil {
			return 0, err
		}
		if _, err := kv.Put(a.ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "w/short/%d", i), Lease: got.ID}); err != nil {
			return 0, err
		}
	}
	gone := make(chan struct{})
	go func() {
		for left := count; left > 0; {
			got, err := watch.Recv()
			if err != nil {
				return
			}
			for _, event := range got.Events {
				if event.Type == mvccpb.DELETE {
					left--
				}
			}
		}
		close(gone)
	}()
	select {
	case <-gone:
		return time.Since(start), nil
	case <-a.ctx.Done():
		return time.Since(start), errStays
	}
}

// workers runs n workers at once, each until it returns false.
func (a *attacker) workers(n int, work func() bool) {
	done := make(chan struct{})
	for range n {
		go func() {
			for !a.over() && work() {
			}
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
}
