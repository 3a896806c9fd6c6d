package main

import (
	"context"
	"fmt"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
)

// watcherRows make watchers expensive.
var watcherRows = []row{
	{
		name: "memory-deaf-watchers", what: "1,000 watches with distinct ranges, on 20 connections that read nothing, and ten times 6.4 MB of puts",
		seconds: [2]float64{2, 20},
		attack:  deafWatchers,
	},
	{
		name: "memory-nested-watchers", what: "20,000 watches of nested ranges on one stream, and puts that all of them see",
		attack: nestedWatchers,
	},
}

func deafWatchers(a *attacker) error {
	const connections, watches = 20, 50
	for c := range connections {
		// The preparations need answers; afterwards the connection is deaf because `on` waits.
		var created atomic.Int32
		ready, hold := make(chan struct{}), make(chan struct{})
		conn, err := a.deaf("reader", func(f http2.Frame) {
			if _, ok := f.(*http2.DataFrame); ok && created.Add(1) == watches {
				close(ready)
				<-hold
			}
		})
		if err != nil {
			return err
		}
		for w := range watches {
			// Each stream has one watch, so that each has a window of its own.
			if _, err := conn.call(pathWatch, message(createWatch(fmt.Appendf(nil, "w/%04d", c*watches+w), []byte("w0"))), false); err != nil {
				return err
			}
		}
		select {
		case <-ready:
		case <-a.ctx.Done():
			return fmt.Errorf("only %d of %d watches were created", created.Load(), watches)
		}
	}
	writer := pb.NewKVClient(a.grpc("writer"))
	a.begin()
	for i := 0; i < a.Scale.of(20, 50) && !a.over(); i++ {
		if _, err := writer.Put(a.ctx, &pb.PutRequest{Key: []byte("w/x"), Value: noise(i, 1_280_000)}); err != nil {
			a.count("× "+short(err), 1)
		} else {
			a.count("puts of 1.28 MB", 1)
		}
	}
	<-a.ctx.Done()
	return nil
}

// deaf connects without window updates, and outlives the preparations.
func (a *attacker) deaf(common string, on func(http2.Frame)) (*h2, error) {
	return dialH2(context.Background(), a.Address, a.Certs, common, h2options{stingy: true, on: on})
}

func nestedWatchers(a *attacker) error {
	_, err := a.createWatches(a.Scale.of(5_000, 20_000),
		func(i int) *pb.WatchRequest { return createWatch(fmt.Appendf(nil, "w/%08d", i), []byte("w0")) },
		func(got *pb.WatchResponse) { a.count("events", len(got.Events)) })
	if err != nil {
		return err
	}
	writer := pb.NewKVClient(a.grpc("writer"))
	a.begin()
	a.each(4, func(i int) error {
		_, err := writer.Put(a.ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "w/x%d", i), Value: noise(i, 100)})
		if err == nil {
			a.count("puts", 1)
		}
		return err
	})
	return nil
}
