// Command publish compares the publisher with Cilium's clustermesh-apiserver on the same Kubernetes objects:
// each has an API server (of this program) and a real etcd of its own.
//
//	go run ./publish -isthmus PATH -cilium PATH -etcd PATH                   starts, restarts, memory
//	go run ./publish … -rates 10,100,500 -churn 30s                          latency while objects change
//	go run ./publish … -outage both -away 60s                                API servers and etcds that go away
//
// Everything shares the machine, so only ratios of one run say something.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

var (
	cilium    = flag.String("cilium", "", "the original's binary")
	isthmus   = flag.String("isthmus", "", "Isthmus's binary")
	etcdBin   = flag.String("etcd", "", "etcd's binary")
	base      = flag.String("dir", os.TempDir(), "where data directories are made; best in memory")
	total     = flag.Int("objects", 50_000, "objects in the cluster")
	ces       = flag.Bool("ces", false, "endpoints come as CiliumEndpointSlices")
	streaming = flag.Bool("streaming", true, "the API server has streaming lists")
	plainHTTP = flag.Bool("plain", false, "the API server speaks plain HTTP/1.1, not HTTPS")
	together  = flag.Bool("together", false, "both sides run at the same time, on the same objects")
	rounds    = flag.Int("rounds", 1, "cold starts and restarts of which the median counts")
	quiet     = flag.Duration("quiet", 30*time.Second, "how long to wait until memory is at rest")
	qps       = flag.String("qps", "20", "etcd.qps of starts and outages, as the chart gives it")
	churnQPS  = flag.String("churn-qps", "1000", "the original's etcd.qps while objects change")
	ourQPS    = flag.String("our-churn-qps", "0", "Isthmus's etcd.qps while objects change")
	rates     = flag.String("rates", "", "changes a second, to measure latency at: 10,100,500")
	length    = flag.Duration("churn", 30*time.Second, "how long each of them lasts")
	outage    = flag.String("outage", "", "what goes away: kubernetes, etcd or both")
	away      = flag.Duration("away", time.Minute, "for how long")
	meanwhile = flag.Int("outage-rate", 10, "changes a second around an outage")
	restarts  = flag.Bool("restart", true, "measure restarts")
	patience  = flag.Duration("patience", 3*time.Minute, "how long to wait for readiness and for what should be in etcd")
	more      = flag.String("args", "", "more arguments for Isthmus")
	tell      = flag.String("tell", `queue|error|fail|connect|lag|behind|age|healthy|up|ready|retr|reject|outage|stale|sync|flight|degraded|heartbeat|last`,
		"which metrics an outage's timeline shows")
	keep = flag.Bool("keep", false, "keep logs and data")
)

func main() {
	flag.Parse()
	if *etcdBin == "" || *cilium == "" && *isthmus == "" {
		fmt.Fprintln(os.Stderr, "name etcd with -etcd, and publishers with -cilium and -isthmus")
		os.Exit(2)
	}
	dir, err := os.MkdirTemp(*base, "publish-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(dir))
}

// run measures everything, and returns the exit status.
func run(dir string) int {
	if *keep {
		progress("logs are in %s", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	failed := false
	var groups [][]publisherKind
	for _, k := range []publisherKind{theirs, ours} {
		switch {
		case k == theirs && *cilium == "" || k == ours && *isthmus == "":
		case *together && len(groups) == 1:
			groups[0] = append(groups[0], k)
		default:
			groups = append(groups, []publisherKind{k})
		}
	}
	var all []*figures
	for i, group := range groups {
		var of []*figures
		for _, k := range group {
			of = append(of, &figures{name: k.String(), kind: k})
		}
		all = append(all, of...)
		for round := range *rounds {
			if err := runRound(of, fmt.Sprint(dir, "/", i, "-", round), round == *rounds-1); err != nil {
				progress("%v", err)
				failed = true
			}
		}
	}
	report(all)
	if wrong := judge(all); wrong || failed {
		return 1
	}
	return 0
}

// runRound measures sides that share a world. Long measurements are made only in the last round.
func runRound(group []*figures, dir string, last bool) error {
	w := newWorld(podsFor(*total), *ces)
	progress("%d objects, %d pods", w.store.count(), len(w.pods))
	var sides []*side
	defer func() {
		for _, s := range sides {
			s.close()
		}
		runtime.GC()
	}()
	for i, f := range group {
		s, err := newSide(f, i, w, dir)
		if err != nil {
			return err
		}
		f.objects = w.store.count()
		sides = append(sides, s)
	}
	steps := []func([]*side) error{starts}
	if *rates != "" && last {
		steps = append(steps, churns)
	}
	if *outage != "" && last {
		steps = append(steps, outages)
	}
	for _, step := range steps {
		if err := step(sides); err != nil {
			return err
		}
	}
	return nil
}

// each runs f for all sides at once.
func each(sides []*side, f func(*side) error) error {
	errs := make(chan error, len(sides))
	for _, s := range sides {
		go func() { errs <- f(s) }()
	}
	var first error
	for range sides {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func rateList() (all []int) {
	for _, text := range strings.Split(*rates, ",") {
		if n, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
			all = append(all, n)
		}
	}
	return all
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}
