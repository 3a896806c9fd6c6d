package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"isthmus.dev/interop/peer"
)

const (
	// cadence is the interval at which each probe of the innocent client begins an operation.
	cadence = 20 * time.Millisecond
	// patience is how long the innocent client waits for one operation, and for the last events.
	patience = 10 * time.Second
)

// probe times one kind of operation.
type probe struct {
	kind string

	mu      sync.Mutex
	samples []sample
	failed  int
	first   error
}

type sample struct {
	end  time.Time
	took time.Duration
}

func (p *probe) add(began time.Time, err error) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples = append(p.samples, sample{now, now.Sub(began)})
	if err != nil {
		p.failed++
		if p.first == nil {
			p.first = err
		}
	}
}

// run repeats the operation until the context ends. An operation that has begun may end afterwards.
func (p *probe) run(ctx context.Context, do func(context.Context) error) {
	for ctx.Err() == nil {
		began := time.Now()
		c, cancel := context.WithTimeout(context.Background(), patience)
		err := do(c)
		cancel()
		p.add(began, err)
		time.Sleep(cadence - time.Since(began))
	}
}

// spread is the distribution of a probe's durations, in the window of the attack.
type spread struct {
	Kind    string        `json:"kind"`
	Count   int           `json:"count"`
	P99     time.Duration `json:"p99"`
	Longest time.Duration `json:"longest"`
	Failed  int           `json:"failed"`
	Error   string        `json:"error,omitempty"`
}

// since is the spread of the operations that ended after the time.
func (p *probe) since(begin time.Time) spread {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := spread{Kind: p.kind, Failed: p.failed}
	if p.first != nil {
		s.Error = p.first.Error()
	}
	var took []time.Duration
	for _, one := range p.samples {
		if one.end.After(begin) {
			// Waiting that began before the attack is not the attack's.
			took = append(took, min(one.took, one.end.Sub(begin)))
		}
	}
	if s.Count = len(took); s.Count > 0 {
		slices.Sort(took)
		s.P99, s.Longest = took[(len(took)-1)*99/100], took[len(took)-1]
	}
	return s
}

// innocent is an honest client with its own connections, which puts, reads, watches and connects during an attack.
type innocent struct {
	probes []*probe
	watch  *watched
	stop   context.CancelFunc
	done   sync.WaitGroup
	conns  []*grpc.ClientConn
	// control is the connection to the echo.
	control net.Conn
}

// startInnocent connects and begins to probe. `echo` is the address of the control: a server that only echoes, whose
// stalls are those of the machine.
func startInnocent(t *target, echo string) (*innocent, error) {
	name := "innocent"
	if t.serve {
		name = t.admin
	}
	ctx, stop := context.WithCancel(context.Background())
	in := &innocent{stop: stop}
	begin := func(kind string, do func(context.Context) error) {
		p := &probe{kind: kind}
		in.probes = append(in.probes, p)
		in.done.Go(func() { p.run(ctx, do) })
	}
	control, err := net.Dial("tcp", echo)
	if err != nil {
		return nil, err
	}
	in.control = control
	begin("machine", func(context.Context) error {
		_, err := control.Write([]byte{1})
		if err == nil {
			_, err = io.ReadFull(control, make([]byte, 1))
		}
		return err
	})
	for range 2 {
		conn, err := dialAs(t.address, t.certs, name)
		if err != nil {
			return nil, err
		}
		in.conns = append(in.conns, conn)
	}
	kv := pb.NewKVClient(in.conns[0])
	key := []byte("innocent/key")
	if err := in.follow(ctx, in.conns[1], key); err != nil {
		return nil, err
	}
	begin("put", func(c context.Context) error {
		n := in.watch.next()
		_, err := kv.Put(c, &pb.PutRequest{Key: key, Value: strconv.AppendInt(nil, int64(n), 10)})
		in.watch.answered(n, err)
		return err
	})
	get := func(c context.Context, kv pb.KVClient) error {
		_, err := kv.Range(c, &pb.RangeRequest{Key: key})
		return err
	}
	begin("get", func(c context.Context) error { return get(c, kv) })
	begin("connect", func(c context.Context) error {
		conn, err := dialAs(t.address, t.certs, name)
		if err != nil {
			return err
		}
		defer conn.Close()
		return get(c, pb.NewKVClient(conn))
	})
	if t.health != "" {
		begin("readyz", func(c context.Context) error { return ready(c, t.health) })
	}
	return in, nil
}

// ready asks for the readiness on a new connection.
func ready(ctx context.Context, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz answers %s", answer.Status)
	}
	return nil
}

// finish ends the probes and waits for their last operations and for the events of the last puts. It returns the spreads since
// the time.
func (in *innocent) finish(begin time.Time) (spreads []spread, broken []string) {
	in.stop()
	in.done.Wait()
	in.control.Close()
	for limit := time.Now().Add(patience); in.watch.missing() > 0 && time.Now().Before(limit); {
		time.Sleep(10 * time.Millisecond)
	}
	in.watch.close()
	for _, conn := range in.conns {
		conn.Close()
	}
	for _, p := range append(in.probes, in.watch.probe) {
		spreads = append(spreads, p.since(begin))
	}
	return spreads, in.watch.broken()
}

// === the watch ===

// watched compares the events of a key with the puts to this key.
type watched struct {
	probe *probe

	mu       sync.Mutex
	puts     []time.Time // when each put began
	seen     int         // the number of the last event
	acked    int         // the highest put that was answered without an error
	failures int         // puts that were answered with an error: their events may or may not come
	lost     int
	disorder int
	cut      error // the stream ended before the client ended it
	closed   bool
}

func (in *innocent) follow(ctx context.Context, conn *grpc.ClientConn, key []byte) error {
	stream, err := pb.NewWatchClient(conn).Watch(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	create := &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key}}
	if err := stream.Send(&pb.WatchRequest{RequestUnion: create}); err != nil {
		return err
	}
	if created, err := stream.Recv(); err != nil || !created.Created || created.Canceled {
		return fmt.Errorf("the innocent client's watch is refused: %v %w", created, err)
	}
	in.watch = &watched{probe: &probe{kind: "event"}}
	go in.watch.receive(stream)
	return nil
}

func (w *watched) receive(stream pb.Watch_WatchClient) {
	for {
		got, err := stream.Recv()
		w.mu.Lock()
		if err == nil && got.Canceled {
			err = fmt.Errorf("the server cancelled the watch: %s", got.CancelReason)
		}
		if err != nil {
			if !w.closed {
				w.cut = err
			}
			w.mu.Unlock()
			return
		}
		for _, event := range got.Events {
			n, _ := strconv.Atoi(string(event.Kv.Value))
			switch {
			case n <= w.seen || n > len(w.puts):
				w.disorder++
			default:
				// A put that failed may have no event.
				w.lost += n - w.seen - 1
				w.seen = n
				w.probe.add(w.puts[n-1], nil)
			}
		}
		w.mu.Unlock()
	}
}

// next is the number of the next put, from 1.
func (w *watched) next() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.puts = append(w.puts, time.Now())
	return len(w.puts)
}

func (w *watched) answered(n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.acked = max(w.acked, n)
	} else {
		w.failures++
	}
}

// missing is the number of answered puts whose events have not come.
func (w *watched) missing() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut != nil {
		return 0
	}
	return max(0, w.acked-w.seen)
}

// close notes the events that never came as stalls.
func (w *watched) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.acked > w.seen {
		w.probe.add(w.puts[w.seen], fmt.Errorf("%d events did not come", w.acked-w.seen))
	}
}

// broken says what was wrong with the events.
func (w *watched) broken() (what []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut != nil {
		what = append(what, "watch cut: "+w.cut.Error())
	}
	if w.lost > w.failures {
		what = append(what, fmt.Sprintf("%d events lost", w.lost))
	}
	if w.disorder > 0 {
		what = append(what, fmt.Sprintf("%d events out of order", w.disorder))
	}
	return what
}

// === the control ===

// serveEcho echoes until its parent ends it.
func serveEcho(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() { _, _ = io.Copy(conn, conn); conn.Close() }()
	}
}

// startEcho starts the control in a process of its own.
func startEcho(self, log string) (*peer.Process, string, error) {
	address := peer.FreePort()
	p := &peer.Process{Name: "echo", Bin: self, Args: []string{"-echo", address}, Log: log}
	if err := p.Start(); err != nil {
		return nil, "", err
	}
	return p, address, p.Listening(address, 10*time.Second)
}
