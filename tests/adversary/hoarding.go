package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
)

// hoardingRows make the server keep what is never finished.
var hoardingRows = []row{
	{
		name: "hoard-calls", what: "200,000 calls without a message on each of 20 connections",
		attack: func(a *attacker) error {
			a.begin()
			return a.hoard("nobody", a.Scale.of(20_000, 200_000), func(c *h2, _ int) error {
				return c.do(func() error { _, err := c.open(pathRange, "127.0.0.1", false); return err })
			})
		},
	},
	{
		name: "hoard-windows", what: "100 ranges of everything, each with a window of one byte, on 20 connections",
		fixture: fixture{big: true},
		attack: func(a *attacker) error {
			a.begin()
			request := message(everything())
			return a.hoard("reader", 100, func(c *h2, _ int) error { _, err := c.call(pathRange, request, true); return err },
				http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		},
	},
	{
		name: "hoard-messages", what: "1,000 messages of 1.9 MB that lack their last byte, on 20 connections",
		seconds: [2]float64{2, 20},
		attack: func(a *attacker) error {
			a.begin()
			text := framed(noise(1, 1_900_000))
			return a.hoard("nobody", a.Scale.of(400, 1000)/floods, func(c *h2, _ int) (err error) {
				var id uint32
				if err = c.do(func() error { id, err = c.open(pathPut, "127.0.0.1", false); return err }); err != nil {
					return err
				}
				return c.send(id, text[:len(text)-1], false)
			})
		},
	},
	{
		name: "hoard-range-ends", what: "1,000 watches with range ends of 1.9 MB, on 20 connections",
		seconds: [2]float64{2, 20},
		attack: func(a *attacker) error {
			return a.bigWatches(func(i int) *pb.WatchRequest {
				// The last byte keeps the range inside the reader's prefix.
				return createWatch(fmt.Appendf(nil, "big/%d", i), append([]byte("big/z"), noise(i, 1_900_000)...))
			})
		},
	},
	{
		name: "hoard-watch-keys", what: "1,000 watches of keys of 0.9 MB, on 20 connections",
		seconds: [2]float64{2, 20},
		attack: func(a *attacker) error {
			return a.bigWatches(func(i int) *pb.WatchRequest {
				return createWatch(append(fmt.Appendf(nil, "big/%d", i), noise(i, 900_000)...), nil)
			})
		},
	},
	{
		name: "hoard-leases", what: "leases of an hour, granted to a user without roles, as fast as possible on 20 connections",
		attack: func(a *attacker) error {
			a.begin()
			a.each(floods, func(int) error { return a.grants() })
			return nil
		},
	},
	{
		name: "hoard-health", what: "1,000 health watches of a certificate that is no user on each of 100 connections",
		full:    true,
		seconds: [2]float64{8, 10},
		attack: func(a *attacker) error {
			a.begin()
			return a.hoardOn(100, "nobody", 1000, func(c *h2, _ int) error { _, err := c.call(pathHealth, nil, true); return err })
		},
	},
	{
		name: "hoard-drip", what: "120 answers of 4 MB, taken in drips on 40 connections, and a long list of another user amid",
		full:    true,
		fixture: fixture{big: true},
		seconds: [2]float64{18, 18},
		attack:  drip,
	},
}

// drip takes answers so slowly that they occupy the room for answers, yet too fast to be given up. Another user must still get
// room for an answer of 0.95 MB.
func drip(a *attacker) error {
	kv := pb.NewKVClient(a.grpc("writer"))
	list := func(note string) (time.Duration, error) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("big/"), RangeEnd: endOf("big/"), Limit: 1900})
		took := time.Since(start)
		a.set("ms of a long list "+note, int(took.Milliseconds()))
		return took, err
	}
	if _, err := list("before"); err != nil {
		return err
	}
	a.begin()
	request := message(&pb.RangeRequest{Key: []byte("big/"), RangeEnd: endOf("big/"), Limit: 8300})
	go a.each(40, func(int) error { return a.dripping(3, request) })
	a.rest(4 * time.Second)
	switch took, err := list("amid"); {
	case err != nil:
		a.fail("a long list of another user failed: %s", short(err))
	case took > stallBound:
		a.fail("a long list of another user took %s ms", ms(took))
	}
	return nil
}

// dripping makes n calls on one connection and takes 140 kB of their answers every two seconds.
func (a *attacker) dripping(n int, request []byte) error {
	const drop = 140_000
	c, err := a.h2("reader", h2options{stingy: true, settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1}}})
	if err != nil {
		return err
	}
	defer c.Close()
	var ids []uint32
	for range n {
		id, err := c.call(pathRange, request, true)
		if err != nil {
			return err
		}
		ids = append(ids, id)
		a.count("calls", 1)
	}
	for !a.over() {
		a.rest(2 * time.Second)
		if err := c.ended(); err != nil {
			return err
		}
		err := c.do(func() error {
			for _, id := range ids {
				if err := c.fr.WriteWindowUpdate(id, uint32(drop/n)); err != nil {
					return err
				}
			}
			return c.fr.WriteWindowUpdate(0, drop)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hoard opens n streams on each of 20 connections, and keeps them until the attack is over.
func (a *attacker) hoard(common string, n int, open func(c *h2, i int) error, settings ...http2.Setting) error {
	return a.hoardOn(floods, common, n, open, settings...)
}

// hoardOn is hoard with another number of connections.
func (a *attacker) hoardOn(connections int, common string, n int, open func(c *h2, i int) error, settings ...http2.Setting) error {
	a.each(connections, func(w int) error {
		c, err := a.h2(common, h2options{settings: settings, stingy: len(settings) > 0})
		if err != nil {
			return err
		}
		defer c.Close()
		for i := 0; i < n && !a.over(); i++ {
			if err := open(c, w*n+i); err != nil {
				if ended := c.ended(); ended != nil {
					return ended
				}
				if errors.Is(err, errNoWindow) {
					a.count("no window", 1)
					break
				}
				return err
			}
			a.count("hoarded", 1)
		}
		return a.keep(c)
	})
	return nil
}

// bigWatches creates watches with large requests, each on a stream of its own.
func (a *attacker) bigWatches(request func(i int) *pb.WatchRequest) error {
	a.begin()
	return a.hoard("reader", a.Scale.of(400, 1000)/floods, func(c *h2, i int) error {
		_, err := c.call(pathWatch, message(request(i)), false)
		return err
	})
}

// grants grants leases on one connection, 64 at once, until the attack is over.
func (a *attacker) grants() error {
	lease := pb.NewLeaseClient(a.grpc("roleless"))
	a.each(64, func(int) error {
		_, err := lease.LeaseGrant(a.ctx, &pb.LeaseGrantRequest{TTL: 3600})
		if err == nil {
			a.count("leases", 1)
		}
		return err
	})
	return nil
}
