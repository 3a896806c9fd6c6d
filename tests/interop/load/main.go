// Command load puts etcd and Isthmus under the same load, in turns, and prints the costs of durable puts.
//
//	go run ./load -bin PATH -etcd PATH                      throughput, CPU and latency
//	go run ./load -bin PATH -etcd PATH -fill 1000000        memory, disk and the time of a restart
//	go run ./load -bin PATH -etcd PATH -fill 100000 -churn 10m
//
// Servers and load share the machine, so only ratios of one run say something.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"isthmus.dev/interop/peer"
)

var (
	bin      = flag.String("bin", "", "path of Isthmus")
	etcd     = flag.String("etcd", "", "path of etcd")
	base     = flag.String("dir", os.TempDir(), "directory for data directories")
	seconds  = flag.Int("seconds", 10, "duration of each measurement, in seconds")
	value    = flag.Int("value", 256, "size of a value, in bytes")
	space    = flag.Int("keys", 10_000, "number of keys that are put at random, without -fill")
	clients  = flag.Int("clients", 8, "number of connections")
	inflight = flag.Int("inflight", 32, "concurrent calls per connection")
	rounds   = flag.Int("rounds", 3, "rounds; the result is their median")
	modes    = flag.String("modes", "sync,interval,none,memory", "durability modes of Isthmus; memory means no data directory")
	engines  = flag.String("engines", "log,sled", "engines of Isthmus")
	fill     = flag.Int("fill", 0, "number of keys to fill, to measure memory and disk; 0 measures throughput")
	churn    = flag.Duration("churn", 0, "duration of overwriting the filled keys")
	more     = flag.String("args", "", "more arguments for Isthmus")
	moreEtcd = flag.String("etcd-args", "", "more arguments for etcd")
)

// variant is a server in one of its settings.
type variant struct {
	name string
	bin  string
	args []string
	// The server has no data directory.
	volatile bool
}

func variants() []variant {
	var all []variant
	if *etcd != "" {
		all = append(all, variant{name: "etcd", bin: *etcd, args: strings.Fields(*moreEtcd)})
	}
	if *bin == "" {
		return all
	}
	ours := append([]string{"etcd"}, strings.Fields(*more)...)
	for _, mode := range strings.Split(*modes, ",") {
		if mode == "memory" {
			all = append(all, variant{name: "isthmus memory", bin: *bin, args: ours, volatile: true})
			continue
		}
		for _, engine := range strings.Split(*engines, ",") {
			args := append(slices.Clone(ours), "--durability="+mode, "--data-engine="+engine)
			all = append(all, variant{name: "isthmus " + engine + " " + mode, bin: *bin, args: args})
		}
	}
	return all
}

func main() {
	flag.Parse()
	all := variants()
	if len(all) == 0 {
		fmt.Fprintln(os.Stderr, "name a server with -bin or -etcd")
		os.Exit(2)
	}
	dir, err := os.MkdirTemp(*base, "load-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer os.RemoveAll(dir)
	fmt.Printf("%d CPUs, values of %d bytes, %d × %d puts at once; a sync of 4 KiB takes p50 %s ms\n",
		runtime.NumCPU(), *value, *clients, *inflight, ms(syncTime(dir)))
	if *fill > 0 {
		fillAll(all, dir)
	} else {
		putAll(all, dir)
	}
}

// === puts ===

// result is one measurement of one server.
type result struct {
	rate     float64 // puts a second
	cpu      float64 // of the server, µs a put
	p50, p99 time.Duration
}

type measured struct {
	many, one []result
	failed    error
}

// putAll measures every server in every round, so that noise of the machine affects all of them.
func putAll(all []variant, dir string) {
	results := make([]measured, len(all))
	for round := range *rounds {
		for i, v := range all {
			m := &results[i]
			if m.failed != nil {
				continue
			}
			many, one, err := putRound(v, filepath.Join(dir, fmt.Sprint(i, "-", round)))
			if err != nil {
				m.failed = err
				progress("%s: %v", v.name, err)
				continue
			}
			m.many, m.one = append(m.many, many), append(m.one, one)
			progress("round %d, %s: %.0f puts/s, one writer %.0f puts/s", round+1, v.name, many.rate, one.rate)
		}
	}
	header := []string{"puts", "puts/s", "of etcd", "min-max", "CPU µs/put", "of etcd", "p50 ms", "p99 ms"}
	rate := func(r result) float64 { return r.rate }
	for _, phase := range []struct {
		title string
		of    func(measured) []result
	}{
		{fmt.Sprintf("%d × %d", *clients, *inflight), func(m measured) []result { return m.many }},
		{"one writer", func(m measured) []result { return m.one }},
	} {
		header[0] = phase.title
		rows := [][]string{slices.Clone(header)}
		theirs := phase.of(results[0])
		if all[0].bin != *etcd {
			theirs = nil
		}
		for i, v := range all {
			rs := phase.of(results[i])
			if len(rs) == 0 {
				rows = append(rows, []string{v.name, "failed"})
				continue
			}
			cpu := func(r result) float64 { return r.cpu }
			rates := each(rs, rate)
			rows = append(rows, []string{
				v.name,
				fmt.Sprintf("%.0f", peer.Median(rates)), ratio(rs, theirs, rate),
				fmt.Sprintf("%.0f-%.0f", slices.Min(rates), slices.Max(rates)),
				fmt.Sprintf("%.1f", peer.Median(each(rs, cpu))), ratio(rs, theirs, cpu),
				ms(peer.Median(each(rs, func(r result) time.Duration { return r.p50 }))),
				ms(peer.Median(each(rs, func(r result) time.Duration { return r.p99 }))),
			})
		}
		peer.Table(rows)
	}
	for i, v := range all {
		if results[i].failed != nil {
			fmt.Printf("%s: %v\n", v.name, results[i].failed)
		}
	}
}

func putRound(v variant, dir string) (many, one result, err error) {
	p, err := begin(v, dir)
	if err != nil {
		return
	}
	defer p.remove()
	kv, done, err := p.connect(*clients)
	if err != nil {
		return
	}
	defer done()
	if many, err = measure(p, kv, *inflight); err != nil {
		return
	}
	one, err = measure(p, kv[:1], 1)
	return
}

// measure puts for the given time, after a second of warming up.
func measure(p *process, kv []pb.KVClient, inflight int) (r result, err error) {
	length := time.Duration(*seconds) * time.Second
	from := time.Now().Add(time.Second)
	to := from.Add(length)
	ctx, cancel := context.WithDeadline(context.Background(), to)
	defer cancel()
	took := make([][]time.Duration, len(kv)*inflight)
	ended := make(chan error, 1)
	go func() {
		ended <- work(ctx, kv, inflight, randomKey(*space), func(worker int, began, now time.Time) {
			if now.After(from) && now.Before(to) {
				took[worker] = append(took[worker], now.Sub(began))
			}
		})
	}()
	time.Sleep(time.Until(from))
	before := p.CPU()
	time.Sleep(time.Until(to))
	after := p.CPU()
	if err = <-ended; err != nil {
		return r, err
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return r, fmt.Errorf("no put in %v", length)
	}
	slices.Sort(all)
	r.rate = float64(len(all)) / length.Seconds()
	r.cpu = float64((after - before).Microseconds()) / float64(len(all))
	r.p50, r.p99 = all[len(all)/2], all[len(all)*99/100]
	return r, nil
}

func randomKey(n int) func(*rand.Rand) []byte {
	return func(rng *rand.Rand) []byte { return keyOf(rng.IntN(n)) }
}

func keyOf(n int) []byte { return fmt.Appendf(nil, "/load/key/%010d", n) }

// noise is the incompressible text from which values are cut.
var noise = func() []byte {
	b := make([]byte, 8<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(b)
	return b
}()

// work puts on all connections until ctx ends or all keys are used.
func work(ctx context.Context, kv []pb.KVClient, inflight int, key func(*rand.Rand) []byte, seen func(worker int, began, now time.Time)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range len(kv) * inflight {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
			for ctx.Err() == nil {
				k := key(rng)
				if k == nil {
					return
				}
				at := rng.IntN(len(noise) - *value)
				began := time.Now()
				_, err := kv[i%len(kv)].Put(context.Background(), &pb.PutRequest{Key: k, Value: noise[at : at+*value]})
				if err != nil {
					cancel(fmt.Errorf("put: %w", err))
					return
				}
				seen(i, began, time.Now())
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && ctx.Err() == context.Canceled {
		return err
	}
	return nil
}

// === figures ===

func each[T, V any](of []T, f func(T) V) []V {
	var out []V
	for _, v := range of {
		out = append(out, f(v))
	}
	return out
}

// ratio is the median over the rounds of the ratio to etcd.
func ratio(ours, theirs []result, f func(result) float64) string {
	var all []float64
	for i := range min(len(ours), len(theirs)) {
		all = append(all, f(ours[i])/f(theirs[i]))
	}
	if len(all) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", peer.Median(all))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
