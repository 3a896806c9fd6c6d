package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
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
	{
		name: "memory-old-watches", what: "8,000 watches from the first revision of a key that never was, on 4 streams",
		full:    true,
		fixture: fixture{big: true},
		attack:  oldWatches,
	},
	{
		name: "memory-watch-answers", what: "4,500 refused watches on each of 126 streams of 10 connections whose windows are 0",
		full:    true,
		seconds: [2]float64{15, 15},
		attack:  watchAnswers,
	},
	{
		name: "memory-watch-buffers", what: "400 streams on each of 2 connections take one message of 1 MB each",
		full:    true,
		seconds: [2]float64{12, 15},
		attack:  watchBuffers,
	},
}

// oldWatches create watches that must each read the whole history and find nothing.
func oldWatches(a *attacker) error {
	request := createWatch([]byte("big/none"), nil)
	request.GetCreateRequest().StartRevision = 1
	a.begin()
	a.each(4, func(int) error {
		watch, err := pb.NewWatchClient(a.grpc("reader")).Watch(a.ctx)
		if err != nil {
			return err
		}
		go func() {
			for range 2000 {
				if watch.Send(request) != nil {
					return // Recv returns the reason.
				}
			}
		}()
		for {
			if _, err := watch.Recv(); err != nil {
				return err
			}
			a.count("answers", 1)
		}
	})
	return nil
}

// watchAnswers makes answers wait. A window of one byte after each batch lets the server take the requests that wait behind the
// first answer.
func watchAnswers(a *attacker) error {
	const streams, batch, messages = 126, 70, 1500
	many := bytes.Repeat(framed(message(createWatch([]byte("x"), nil))), messages)
	a.begin()
	a.each(10, func(int) error {
		c, err := a.h2("reader", h2options{settings: noWindows, stingy: true})
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.do(func() error { return c.fr.WriteWindowUpdate(0, 1<<30) }); err != nil {
			return err
		}
		ids := make([]uint32, streams)
		for i := range ids {
			if err := c.do(func() error { ids[i], err = c.open(pathWatch, "127.0.0.1", false); return err }); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(ids, batch) {
			for _, id := range some {
				for range 3 {
					if err := c.send(id, many, false); errors.Is(err, errNoWindow) {
						a.count("no window", 1)
						return a.keep(c)
					} else if err != nil {
						return err
					}
					a.count("requests", messages)
				}
			}
			err := c.do(func() error {
				for _, id := range some {
					if err := c.fr.WriteWindowUpdate(id, 1); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return a.keep(c)
	})
	return nil
}

// watchBuffers makes each stream encode one large message. Its buffer must not stay with the stream.
func watchBuffers(a *attacker) error {
	kv := pb.NewKVClient(a.grpc("writer"))
	var first int64
	for i := range 2 {
		put, err := kv.Put(a.ctx, &pb.PutRequest{Key: []byte("w/half"), Value: noise(i, 480_000)})
		if err != nil {
			return err
		}
		if first == 0 {
			first = put.Header.Revision
		}
	}
	request := createWatch([]byte("w/half"), nil)
	request.GetCreateRequest().StartRevision = first
	text := message(request)
	a.begin()
	a.each(2, func(int) error {
		c, err := a.h2("reader", h2options{settings: wideWindows, on: a.bytes})
		if err != nil {
			return err
		}
		defer c.Close()
		for i := 0; i < 400 && !a.over(); i++ {
			if _, err := c.call(pathWatch, text, false); err != nil {
				return err
			}
			a.count("streams", 1)
		}
		return a.keep(c)
	})
	return nil
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
