package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"
)

// randomRows walk at random through everything that a reader's certificate can do.
var randomRows = []row{{
	name: "random", what: "20 connections of a reader with random calls, sizes, stalls, windows, cancels and frames, from -seed, for -minutes",
	fixture: fixture{big: true},
	seconds: [2]float64{10, 60},
	stall:   500 * time.Millisecond,
	flat:    true,
	attack:  randomly,
}}

// keepShort compacts the history of the innocent client, which would grow in a long run.
func (a *attacker) keepShort() {
	kv := pb.NewKVClient(a.grpc("root"))
	for !a.over() {
		if got, err := kv.Range(a.ctx, &pb.RangeRequest{Key: []byte("innocent/key")}); err == nil {
			_, _ = kv.Compact(a.ctx, &pb.CompactionRequest{Revision: got.Header.Revision})
		}
		a.rest(5 * time.Second)
	}
}

func randomly(a *attacker) error {
	a.begin()
	go a.keepShort()
	// Each connection has its own random numbers, so that their order does not depend on timing.
	walks := make([]*walk, floods)
	for i := range walks {
		walks[i] = &walk{attacker: a, rng: rand.New(rand.NewPCG(a.Seed, uint64(i)+1))}
	}
	a.each(floods, func(i int) error { return walks[i].life() })
	return nil
}

// walk is one connection after the other, with random actions.
type walk struct {
	*attacker
	rng  *rand.Rand
	c    *h2
	open []uint32
}

// life is one connection.
func (w *walk) life() error {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	var settings []http2.Setting
	if w.rng.IntN(2) == 0 {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: w.pick32(0, 1, 100, 65535, 1<<20, 1<<30)})
	}
	common := "reader"
	if w.rng.IntN(5) == 0 {
		common = "nobody"
	}
	options := h2options{settings: settings, deaf: w.rng.IntN(10) == 0, stingy: w.rng.IntN(4) == 0}
	c, err := dialH2(ctx, w.Address, w.Certs, common, options)
	if err != nil {
		return err
	}
	defer c.Close()
	w.count("connections", 1)
	w.c, w.open = c, nil
	for range 20 + w.rng.IntN(500) {
		if w.over() {
			return nil
		}
		if ended := c.ended(); ended != nil {
			w.count("connections ended by the server", 1)
			return nil
		}
		if err := w.step(); err != nil {
			w.count("connections ended by the server", 1)
			return nil
		}
	}
	return nil
}

func (w *walk) pick32(of ...uint32) uint32 { return of[w.rng.IntN(len(of))] }

// action is a step of a walk; its weight is how often it is taken.
type action struct {
	name   string
	weight int
	do     func(*walk) error
}

var actions = []action{
	{"ranges", 20, func(w *walk) error { return w.begins(pathRange, w.someRange(), true) }},
	{"watches", 20, func(w *walk) error { return w.begins(pathWatch, w.someWatch(), w.rng.IntN(20) == 0) }},
	{"transactions", 8, func(w *walk) error { return w.begins(pathTxn, w.someTxn(2), true) }},
	{"puts", 5, func(w *walk) error {
		return w.begins(pathPut, &pb.PutRequest{Key: w.key(), Value: noise(w.rng.IntN(1000), w.size())}, true)
	}},
	{"leases", 8, func(w *walk) error {
		return w.begins(pathGrant, &pb.LeaseGrantRequest{TTL: int64(2 + w.rng.IntN(5))}, true)
	}},
	{"keep-alives", 4, func(w *walk) error {
		return w.begins(pathKeepAlive, &pb.LeaseKeepAliveRequest{ID: w.rng.Int64()}, false)
	}},
	{"logins", 1, func(w *walk) error {
		return w.begins(pathLogin, &pb.AuthenticateRequest{Name: "login", Password: "wrong"}, true)
	}},
	{"messages on open streams", 15, func(w *walk) error {
		if len(w.open) == 0 {
			return nil
		}
		id := w.open[w.rng.IntN(len(w.open))]
		text := framed(message(w.someWatch()))
		if w.rng.IntN(4) == 0 {
			text = framed(message(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}))
		}
		return w.sends(id, text, w.rng.IntN(10) == 0)
	}},
	{"cancels", 15, func(w *walk) error {
		if len(w.open) == 0 {
			return nil
		}
		i := w.rng.IntN(len(w.open))
		id := w.open[i]
		w.open = append(w.open[:i], w.open[i+1:]...)
		return w.c.do(func() error { return w.c.fr.WriteRSTStream(id, http2.ErrCodeCancel) })
	}},
	{"unknown methods", 2, func(w *walk) error { return w.begins("/no.such.Service/Call", &pb.RangeRequest{Key: w.key()}, false) }},
	{"garbage", 4, func(w *walk) error {
		id, err := w.opens([]string{pathRange, pathWatch, pathTxn}[w.rng.IntN(3)])
		if err != nil {
			return err
		}
		return w.sends(id, framed(noise(w.rng.IntN(10_000), w.size())), true)
	}},
	{"unfinished messages", 4, func(w *walk) error {
		id, err := w.opens(pathPut)
		if err != nil {
			return err
		}
		text := framed(noise(1, w.size()+1))
		return w.sends(id, text[:len(text)-1], false)
	}},
	{"windows", 6, func(w *walk) error {
		size := w.pick32(0, 1, 16, 65535, 1<<20)
		return w.c.do(func() error {
			return w.c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
		})
	}},
	{"pings", 3, func(w *walk) error {
		return w.c.do(func() error { return w.c.fr.WritePing(false, [8]byte{1}) })
	}},
	{"stalls", 10, func(w *walk) error {
		w.rest(time.Duration(w.rng.IntN(300)) * time.Millisecond)
		return nil
	}},
	{"broken frames", 1, func(w *walk) error {
		return w.c.do(func() error {
			return w.c.fr.WriteRawFrame(http2.FrameType(w.rng.IntN(12)), http2.Flags(w.rng.IntN(256)), w.c.last, noise(1, w.rng.IntN(100)))
		})
	}},
}

var weights = func() (sum int) {
	for _, a := range actions {
		sum += a.weight
	}
	return sum
}()

// step takes one random action, and a short pause after most.
func (w *walk) step() error {
	n := w.rng.IntN(weights)
	for _, a := range actions {
		if n -= a.weight; n < 0 {
			w.count(a.name, 1)
			if err := a.do(w); err != nil && err != errNoWindow {
				return err
			}
			break
		}
	}
	if w.rng.IntN(4) > 0 {
		w.rest(time.Duration(w.rng.IntN(5000)) * time.Microsecond)
	}
	return nil
}

// opens opens a stream and remembers it.
func (w *walk) opens(path string) (id uint32, err error) {
	err = w.c.do(func() error { id, err = w.c.open(path, "127.0.0.1", false); return err })
	w.open = append(w.open, id)
	return id, err
}

func (w *walk) begins(path string, m proto.Message, end bool) error {
	id, err := w.opens(path)
	if err != nil {
		return err
	}
	return w.sends(id, framed(message(m)), end)
}

// sends sends data; without windows, the data is dropped after a short wait.
func (w *walk) sends(id uint32, data []byte, end bool) error { return w.c.send(id, data, end) }

// size is mostly small, and sometimes up to 1.9 MB.
func (w *walk) size() int {
	switch w.rng.IntN(20) {
	case 0:
		return w.rng.IntN(1_900_000)
	case 1, 2:
		return w.rng.IntN(50_000)
	}
	return w.rng.IntN(500)
}

func (w *walk) key() []byte {
	if w.rng.IntN(50) == 0 {
		return append([]byte("big/"), noise(1, w.size())...)
	}
	return fmt.Appendf(nil, "big/%08d", w.rng.IntN(100_000))
}

func (w *walk) someRange() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: w.key(), Serializable: w.rng.IntN(2) == 0}
	switch w.rng.IntN(6) {
	case 0:
		r.Key, r.RangeEnd = []byte("big/"), endOf("big/")
	case 1, 2:
		r.RangeEnd = w.key()
	case 3:
		r.RangeEnd = []byte{0}
	}
	if w.rng.IntN(2) == 0 {
		r.Limit = int64(w.rng.IntN(1000))
	}
	if w.rng.IntN(8) == 0 {
		r.SortTarget, r.SortOrder = pb.RangeRequest_SortTarget(w.rng.IntN(5)), pb.RangeRequest_SortOrder(w.rng.IntN(3))
	}
	if w.rng.IntN(8) == 0 {
		r.Revision = w.rng.Int64N(2000)
	}
	r.CountOnly, r.KeysOnly = w.rng.IntN(4) == 0, w.rng.IntN(4) == 0
	return r
}

func (w *walk) someWatch() *pb.WatchRequest {
	create := &pb.WatchCreateRequest{
		Key: w.key(), PrevKv: w.rng.IntN(2) == 0, Fragment: w.rng.IntN(2) == 0, ProgressNotify: w.rng.IntN(2) == 0,
	}
	switch w.rng.IntN(3) {
	case 0:
		create.Key, create.RangeEnd = []byte("big/"), endOf("big/")
	case 1:
		create.RangeEnd = w.key()
	}
	if w.rng.IntN(4) == 0 {
		create.StartRevision = w.rng.Int64N(5000)
	}
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
}

// someTxn is a read-only transaction, nested up to the depth.
func (w *walk) someTxn(depth int) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range w.rng.IntN(20) {
		r := w.someRange()
		txn.Compare = append(txn.Compare, &pb.Compare{Key: r.Key, RangeEnd: r.RangeEnd, Target: pb.Compare_CREATE, Result: pb.Compare_GREATER,
			TargetUnion: &pb.Compare_CreateRevision{}})
	}
	for range w.rng.IntN(10) {
		op := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: w.someRange()}}
		if depth > 0 && w.rng.IntN(3) == 0 {
			op = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: w.someTxn(depth - 1)}}
		}
		txn.Success = append(txn.Success, op)
	}
	return txn
}
