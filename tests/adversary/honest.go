package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// honestRows are bursts and oddities of real clients. A server must serve all of them.
var honestRows = []row{
	{
		name: "honest-creates", what: "20,000 watch creates pipelined on one stream: all are answered, and all events come",
		seconds: [2]float64{5, 20}, attack: pipelinedCreates,
	},
	{
		name: "honest-keepalives", what: "20,000 (full: 100,000) lease keep-alives pipelined on one stream: all are answered",
		seconds: [2]float64{5, 20}, attack: pipelinedKeepAlives,
	},
	{
		name: "honest-authority", what: "calls without TLS whose :authority is a URL, a socket's path, a list, or empty",
		fixture: fixture{plain: true}, seconds: [2]float64{5, 20}, attack: authorities,
	},
	{
		name: "honest-cancels", what: "25 and 1,000 ranges cancelled 50 µs after their start, on a connection with a watch", seconds: [2]float64{5, 20}, attack: cancels,
	},
	{
		name: "honest-unknown-service", what: "a stream to a service that does not exist, with messages, on a connection with a watch",
		seconds: [2]float64{5, 20}, attack: unknownService,
	},
	{
		name: "honest-metadata", what: "20 KiB and 200 KiB of request metadata", seconds: [2]float64{5, 20}, attack: metadataSizes,
	},
}

// honestly runs the work within the time of the attack. An honest client that is not served in time is a failure.
func (a *attacker) honestly(what string, work func(ctx context.Context) error) {
	a.early = true
	a.begin()
	began := time.Now()
	if err := work(a.ctx); err != nil {
		a.fail("%s: %v", what, err)
		return
	}
	a.set("ms for "+what, int(time.Since(began).Milliseconds()))
}

func pipelinedCreates(a *attacker) error {
	const keys = 200
	want := a.Scale.of(20_000, 20_000)
	conn := a.grpc("writer")
	a.honestly(fmt.Sprint(want, " creates and their events"), func(ctx context.Context) error {
		watch, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			return err
		}
		var created, events atomic.Int64
		ready, seen, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				got, err := watch.Recv()
				if err != nil {
					failed <- fmt.Errorf("after %d creates and %d events: %w", created.Load(), events.Load(), err)
					return
				}
				if got.Created && created.Add(1) == int64(want) {
					close(ready)
				}
				if n := int64(len(got.Events)); n > 0 && events.Add(n) == int64(want) {
					close(seen)
				}
			}
		}()
		for i := range want {
			if err := watch.Send(createWatch(fmt.Appendf(nil, "honest/%d", i%keys), nil)); err != nil {
				return <-failed
			}
		}
		select {
		case <-ready:
		case err := <-failed:
			return err
		}
		kv := pb.NewKVClient(conn)
		for i := range keys {
			if _, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "honest/%d", i)}); err != nil {
				return err
			}
		}
		select {
		case <-seen:
			return nil
		case err := <-failed:
			return err
		}
	})
	return nil
}

func pipelinedKeepAlives(a *attacker) error {
	want := a.Scale.of(20_000, 100_000)
	client := pb.NewLeaseClient(a.grpc("writer"))
	lease, err := client.LeaseGrant(a.ctx, &pb.LeaseGrantRequest{TTL: 600})
	if err != nil {
		return err
	}
	a.honestly(fmt.Sprint(want, " keep-alives"), func(ctx context.Context) error {
		stream, err := client.LeaseKeepAlive(ctx)
		if err != nil {
			return err
		}
		failed := make(chan error, 1)
		go func() {
			for n := range want {
				got, err := stream.Recv()
				if err != nil || got.TTL <= 0 {
					failed <- fmt.Errorf("after %d answers: %v %w", n, got, err)
					return
				}
			}
			failed <- nil
		}()
		for range want {
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: lease.ID}); err != nil {
				break
			}
		}
		return <-failed
	})
	return nil
}

// authorityForms are what real clients send: clientv3 3.5.0, etcdctl 3.4, Python's grpcio over unix sockets.
var authorityForms = []string{
	"127.0.0.1:2379", "#initially=[http://127.0.0.1:2379]", "#initially=[https://127.0.0.1:2379;https://127.0.0.1:2380]",
	"http://127.0.0.1:2379", "https://127.0.0.1:2379", "/var/run/etcd.sock", "%2Fvar%2Frun%2Fetcd.sock", "unix:///var/run/etcd.sock",
	"127.0.0.1:2379,127.0.0.1:2380", "etcd-endpoints://0xc000/127.0.0.1:2379", "",
}

func authorities(a *attacker) error {
	a.early = true
	a.begin()
	for _, authority := range authorityForms {
		if err := a.served(authority); err != nil {
			a.fail("authority %q: %v", authority, err)
			a.count("refused "+authority, 1)
		} else {
			a.count("forms served", 1)
		}
	}
	return nil
}

// served calls Range twice on one connection with that authority.
func (a *attacker) served(authority string) error {
	answers := make(chan error, 8)
	c, err := a.h2("writer", h2options{headers: true, on: func(f http2.Frame) {
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				answers <- grpcStatus(f)
			}
		case *http2.RSTStreamFrame:
			answers <- fmt.Errorf("reset: %v", f.ErrCode)
		case *http2.GoAwayFrame:
			answers <- fmt.Errorf("goaway: %v", f.ErrCode)
		}
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	request := framed(message(&pb.RangeRequest{Key: []byte("honest/x")}))
	for range 2 {
		err := c.do(func() error {
			id, err := c.open(pathRange, authority, false)
			if err != nil {
				return err
			}
			return c.fr.WriteData(id, true, request)
		})
		if err != nil {
			return err
		}
		select {
		case err := <-answers:
			if err != nil {
				return err
			}
		case <-time.After(2 * time.Second):
			return fmt.Errorf("no answer in 2 s (%v)", c.ended())
		}
	}
	return nil
}

// grpcStatus is the status in the trailers of a call, as an error.
func grpcStatus(f *http2.MetaHeadersFrame) error {
	for _, field := range f.RegularFields() {
		if field.Name == "grpc-status" {
			if field.Value == "0" {
				return nil
			}
			code, _ := strconv.Atoi(field.Value)
			return status.Error(codes.Code(code), messageOf(f.RegularFields()))
		}
	}
	return fmt.Errorf("HTTP status %s without a gRPC status", f.PseudoValue("status"))
}

func messageOf(fields []hpack.HeaderField) string {
	for _, f := range fields {
		if f.Name == "grpc-message" {
			return f.Value
		}
	}
	return ""
}

// witness is a watch that shows whether its connection lives.
type witness struct {
	kv    pb.KVClient
	watch pb.Watch_WatchClient
	key   []byte
}

// watching opens a watch on the connection.
func watching(ctx context.Context, conn *grpc.ClientConn, key string) (*witness, error) {
	w := &witness{kv: pb.NewKVClient(conn), key: []byte(key)}
	var err error
	if w.watch, err = pb.NewWatchClient(conn).Watch(ctx); err != nil {
		return nil, err
	}
	if err := w.watch.Send(createWatch(w.key, nil)); err != nil {
		return nil, err
	}
	_, err = w.watch.Recv()
	return w, err
}

// alive puts and waits for the event.
func (w *witness) alive(ctx context.Context) error {
	if _, err := w.kv.Put(ctx, &pb.PutRequest{Key: w.key}); err != nil {
		return err
	}
	got, err := w.watch.Recv()
	if err != nil {
		return fmt.Errorf("the watch on the connection ended: %w", err)
	}
	if len(got.Events) != 1 {
		return fmt.Errorf("the watch on the connection has no event: %v", got)
	}
	return nil
}

func cancels(a *attacker) error {
	for _, n := range []int{25, 1000} {
		conn := a.grpc("writer")
		a.honestly(fmt.Sprint(n, " cancelled ranges"), func(ctx context.Context) error {
			w, err := watching(ctx, conn, "honest/cancels")
			if err != nil {
				return err
			}
			for range n {
				c, cancel := context.WithCancel(ctx)
				time.AfterFunc(50*time.Microsecond, cancel)
				_, _ = w.kv.Range(c, &pb.RangeRequest{Key: []byte("honest/"), RangeEnd: endOf("honest/")})
				cancel()
			}
			return w.alive(ctx)
		})
		// The same burst with exact timing: the reset follows the request at once.
		a.honestly(fmt.Sprint(n, " ranges reset at once"), func(context.Context) error { return a.resets(n) })
	}
	return nil
}

// resets opens and resets n ranges on a raw connection, 50 µs apart, and expects an answer to the last range.
func (a *attacker) resets(n int) error {
	answered := make(chan error, 1)
	c, err := a.h2("writer", h2options{headers: true, on: func(f http2.Frame) {
		if f, ok := f.(*http2.MetaHeadersFrame); ok && f.StreamEnded() {
			select {
			case answered <- grpcStatus(f):
			default:
			}
		}
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	request := message(&pb.RangeRequest{Key: []byte("honest/x")})
	for i := range n {
		id, err := c.call(pathRange, request, true)
		if err != nil {
			return fmt.Errorf("after %d: %w (%v)", i, err, c.ended())
		}
		time.Sleep(50 * time.Microsecond)
		if err := c.do(func() error { return c.fr.WriteRSTStream(id, http2.ErrCodeCancel) }); err != nil {
			return fmt.Errorf("after %d: %w (%v)", i, err, c.ended())
		}
	}
	for {
		select {
		case <-answered: // of a range that was answered before its reset
			continue
		default:
		}
		break
	}
	if _, err := c.call(pathRange, request, true); err != nil {
		return fmt.Errorf("%w (%v)", err, c.ended())
	}
	select {
	case err := <-answered:
		return err
	case <-time.After(2 * time.Second):
		return fmt.Errorf("no answer to the range after the resets (%v)", c.ended())
	}
}

func unknownService(a *attacker) error {
	conn := a.grpc("writer")
	a.honestly("a stream to an unknown service", func(ctx context.Context) error {
		w, err := watching(ctx, conn, "honest/unknown")
		if err != nil {
			return err
		}
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/no.such.Service/Stream")
		if err != nil {
			return err
		}
		for range 50 {
			_ = stream.SendMsg(&pb.RangeRequest{Key: noise(1, 1000)})
			time.Sleep(2 * time.Millisecond)
		}
		err = stream.RecvMsg(&pb.RangeResponse{})
		if got := status.Convert(err); got.Code() != codes.Unimplemented || !strings.Contains(got.Message(), "unknown service") {
			return fmt.Errorf("the answer is %v, not unimplemented: unknown service", err)
		}
		if err := w.alive(ctx); err != nil {
			return err
		}
		return a.openToUnknown()
	})
	return nil
}

// openToUnknown keeps sending on a raw stream to an unknown service after its answer, as clients in other languages do.
func (a *attacker) openToUnknown() error {
	c, err := a.h2("writer", h2options{})
	if err != nil {
		return err
	}
	defer c.Close()
	var id uint32
	err = c.do(func() error { id, err = c.open("/no.such.Service/Stream", "127.0.0.1", false); return err })
	for i := 0; i < 100 && err == nil; i++ {
		err = c.do(func() error { return c.fr.WriteData(id, false, framed(make([]byte, 20))) })
		time.Sleep(time.Millisecond)
	}
	if ended := c.ended(); ended != nil {
		return fmt.Errorf("the connection with a stream to an unknown service ended: %w", ended)
	}
	return err
}

func metadataSizes(a *attacker) error {
	for _, kib := range []int{20, 200} {
		conn := a.grpc("writer")
		a.honestly(fmt.Sprint(kib, " KiB of metadata"), func(ctx context.Context) error {
			// A JSON web token is one long value; other clients send many values.
			many := make([]string, 0, kib*2)
			for i := range kib {
				many = append(many, fmt.Sprint("x-claim-", i), strings.Repeat("a", 1000))
			}
			kv := pb.NewKVClient(conn)
			for _, fields := range [][]string{{"x-token", strings.Repeat("a", kib<<10)}, many} {
				c := metadata.AppendToOutgoingContext(ctx, fields...)
				if _, err := kv.Range(c, &pb.RangeRequest{Key: []byte("honest/x")}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return nil
}
