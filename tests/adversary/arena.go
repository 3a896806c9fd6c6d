package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"isthmus.dev/interop/peer"
)

const (
	// stallBound and growthBound are the bounds of rows that state no other.
	stallBound  = 250 * time.Millisecond
	growthBound = 256 << 20
	// guard is the growth of a server at which an attack is stopped: the bound is broken, and the machine must survive.
	guard = 4 << 30
)

// arena has what all rows share.
type arena struct {
	dir, certs, self string
	echo             *peer.Process
	echoAddress      string
	runs             int
	seed             uint64
	scale            scaled
}

func newArena(dir string) (*arena, error) {
	a := &arena{dir: dir, certs: filepath.Join(dir, "certs"), seed: *seed, scale: scaled{*scale == "full"}}
	if a.seed == 0 {
		a.seed = uint64(time.Now().UnixNano() % 1_000_000)
	}
	if err := os.MkdirAll(a.certs, 0o700); err != nil {
		return nil, err
	}
	if err := issueAll(a.certs); err != nil {
		return nil, err
	}
	var err error
	if a.self, err = os.Executable(); err != nil {
		return nil, err
	}
	a.echo, a.echoAddress, err = startEcho(a.self, filepath.Join(dir, "echo.log"))
	return a, err
}

func (a *arena) close() { a.echo.Stop(9) }

// result is what one attack did to one server.
type result struct {
	Attack  string        `json:"attack"`
	Server  string        `json:"server"`
	Seed    uint64        `json:"seed"`
	Before  int64         `json:"rss_before"`
	Growth  int64         `json:"rss_growth"` // of the peak during the attack
	After   int64         `json:"rss_after"`
	CPU     time.Duration `json:"cpu"`
	Wall    time.Duration `json:"wall"`
	Machine time.Duration `json:"machine_longest"`
	Spreads []spread      `json:"operations"`
	Notes   []string      `json:"notes,omitempty"`
	Broken  []string      `json:"broken,omitempty"`
	Retried int           `json:"retried,omitempty"`
}

func (r *result) OK() bool { return len(r.Broken) == 0 }

// worst has the longest stall and the highest p99 of all kinds of operations.
func (r *result) worst() (w spread) {
	for _, s := range r.Spreads {
		if s.Longest >= w.Longest {
			w.Kind, w.Longest = s.Kind, s.Longest
		}
		w.P99 = max(w.P99, s.P99)
	}
	return w
}

func (r *result) line() string {
	verdict := "holds"
	if !r.OK() {
		verdict = "BROKEN: " + strings.Join(r.Broken, "; ")
	}
	w := r.worst()
	return fmt.Sprintf("%-26s %-8s growth %5s MiB  CPU %5.1f s  longest %6s ms (%s)  machine %4s ms  %s  [%s]",
		r.Attack, r.Server, mib(r.Growth), r.CPU.Seconds(), ms(w.Longest), w.Kind, ms(r.Machine), verdict, strings.Join(r.Notes, ", "))
}

func (r *result) broke(format string, args ...any) {
	r.Broken = append(r.Broken, fmt.Sprintf(format, args...))
}

// repeat runs the row, and again if a bound of Isthmus broke while the machine stalled: such a result says nothing.
func (a *arena) repeat(r row, s server) result {
	for try := 0; ; try++ {
		got := a.run(r, s)
		got.Retried = try
		if got.OK() || s.etcd || got.Machine < *noisy || try == *retries {
			return got
		}
		fmt.Fprintln(os.Stderr, "again, the machine stalled:", got.line())
	}
}

// run attacks one server once.
func (a *arena) run(r row, s server) (res result) {
	res = result{Attack: r.name, Server: s.name, Seed: a.seed}
	a.runs++
	t, err := startTarget(s.bin, s.etcd, r.fixture, a.certs, filepath.Join(a.dir, fmt.Sprint(a.runs)), a.scale)
	if err != nil {
		res.broke("no start: %v", err)
		return res
	}
	defer t.remove()
	limit := r.duration()
	attack, err := startAssault(a.self, order{
		Attack: r.name, Address: t.address, Health: t.health, Certs: t.certs,
		Seconds: limit.Seconds(), Scale: a.scale, Seed: a.seed,
	})
	if err != nil {
		res.broke("preparations: %v", err)
		return res
	}
	defer attack.kill()
	in, err := startInnocent(t, a.echoAddress)
	if err != nil {
		res.broke("%v", err)
		return res
	}
	time.Sleep(500 * time.Millisecond)
	a.measure(&res, r, t, attack, in, limit)
	return res
}

// measure lets the attack begin, and judges.
func (a *arena) measure(res *result, r row, t *target, attack *assault, in *innocent, limit time.Duration) {
	t.resetPeak()
	res.Before = t.Memory().RSS
	cpu, begin := t.CPU(), time.Now()
	memory := sampleMemory(t, func(rss int64) {
		if rss-res.Before > guard {
			attack.stop("attack stopped: memory grew over 4 GiB")
		}
	})
	out := attack.release(limit + 20*time.Second)
	peak := max(t.Memory().Peak, res.Before)
	samples := memory()
	res.Growth = peak - res.Before
	res.Notes = out.Notes
	// The end of an attack costs the server, too: connections are closed, calls are cancelled.
	time.Sleep(500 * time.Millisecond)
	spreads, broken := in.finish(begin)
	res.Growth = max(res.Growth, t.Memory().Peak-res.Before)
	res.After = t.Memory().RSS
	// Work that the attack left behind counts, too. The figure of a process that has ended is gone.
	res.Wall, res.CPU = time.Since(begin), max(0, t.CPU()-cpu)
	for _, s := range spreads {
		if s.Kind == "machine" {
			res.Machine = s.Longest
		} else {
			res.Spreads = append(res.Spreads, s)
		}
	}
	judge(res, r, t)
	res.Broken = append(res.Broken, append(broken, out.Failed...)...)
	if r.flat {
		judgeFlat(res, samples, a.seed)
	}
}

// judge compares the figures with the bounds.
func judge(res *result, r row, t *target) {
	bound := r.stall
	if bound == 0 {
		bound = stallBound
	}
	for _, s := range res.Spreads {
		switch {
		case s.Failed > 0:
			res.broke("%s failed %d times, first: %s", s.Kind, s.Failed, s.Error)
		case s.Longest > bound:
			res.broke("%s stalled %s ms", s.Kind, ms(s.Longest))
		case s.Count == 0:
			res.broke("%s never answered", s.Kind)
		}
	}
	if res.Growth > growthBound {
		res.broke("memory grew by %s MiB", mib(res.Growth))
	}
	if t.Ended() {
		res.broke("the process ended: %s", t.Complaint())
	} else if err := serves(t); err != nil {
		res.broke("not serving afterwards: %v", err)
	}
}

// serves puts and reads with a new connection.
func serves(t *target) error {
	name := "innocent"
	if t.serve {
		name = t.admin
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := dialAs(t.address, t.certs, name)
	if err != nil {
		return err
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("innocent/after"), Value: []byte("x")}, grpc.WaitForReady(true)); err != nil {
		return err
	}
	got, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("innocent/after")})
	if err == nil && len(got.Kvs) != 1 {
		return fmt.Errorf("the key that was put is missing")
	}
	return err
}

// sampleMemory samples the resident memory until the returned function is called.
func sampleMemory(t *target, each func(int64)) (end func() []int64) {
	stop, got := make(chan struct{}), make(chan []int64)
	go func() {
		var samples []int64
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				rss := t.Memory().RSS
				samples = append(samples, rss)
				each(rss)
			case <-stop:
				got <- samples
				return
			}
		}
	}()
	return func() []int64 { close(stop); return <-got }
}

// judgeFlat compares the memory at the end with the memory after the first tenth of the time.
func judgeFlat(res *result, samples []int64, seed uint64) {
	n := len(samples)
	if n < 20 {
		return
	}
	first, last := slices.Max(samples[n/10:n/5]), peer.Median(samples[n-n/10:])
	if allowed := first + first/10 + 32<<20; last > allowed {
		res.broke("memory rose from %s MiB to %s MiB after the first tenth", mib(first), mib(last))
	}
	if !res.OK() {
		res.broke("again with -seed %d; mix: %s", seed, strings.Join(res.Notes, ", "))
	}
}
