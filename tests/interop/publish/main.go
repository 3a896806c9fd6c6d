// Command publish compares the publisher with Cilium's clustermesh-apiserver on the same Kubernetes objects:
// each has an API server (of this program) and a real etcd of its own.
//
//	go run ./publish -isthmus PATH -cilium PATH -etcd PATH                   starts, restarts, memory
//	go run ./publish … -rates 10,100,500 -churn 30s                          latency while objects change
//	go run ./publish … -outage both -away 60s                                API servers and etcds that go away
//
// All processes share the machine, so only ratios of one run are meaningful.
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
	cilium    = flag.String("cilium", "", "path of Cilium's clustermesh-apiserver")
	isthmus   = flag.String("isthmus", "", "path of Isthmus")
	etcdBin   = flag.String("etcd", "", "path of etcd")
	base      = flag.String("dir", os.TempDir(), "directory for data directories; best in memory")
	total     = flag.Int("objects", 50_000, "number of objects in the cluster")
	ces       = flag.Bool("ces", false, "use CiliumEndpointSlices instead of CiliumEndpoints")
	streaming = flag.Bool("streaming", true, "the API server supports streaming lists")
	plainHTTP = flag.Bool("plain", false, "the API server speaks plain HTTP/1.1, not HTTPS")
	together  = flag.Bool("together", false, "both sides run at the same time, on the same objects")
	rounds    = flag.Int("rounds", 1, "rounds of starts and restarts; the result is their median")
	quiet     = flag.Duration("quiet", 30*time.Second, "pause until memory is measured at rest")
	qps       = flag.String("qps", "20", "etcd.qps of starts and outages; the default is the chart's")
	churnQPS  = flag.String("churn-qps", "1000", "etcd.qps of Cilium while objects change")
	ourQPS    = flag.String("our-churn-qps", "0", "etcd.qps of Isthmus while objects change")
	rates     = flag.String("rates", "", "rates of changes per second at which latency is measured, such as 10,100,500")
	length    = flag.Duration("churn", 30*time.Second, "duration of each rate")
	outage    = flag.String("outage", "", "outages to run: kubernetes, etcd or both")
	away      = flag.Duration("away", time.Minute, "duration of an outage")
	meanwhile = flag.Int("outage-rate", 10, "changes per second during an outage")
	restarts  = flag.Bool("restart", true, "measure restarts")
	patience  = flag.Duration("patience", 3*time.Minute, "how long to wait for readiness and for the expected contents of etcd")
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
