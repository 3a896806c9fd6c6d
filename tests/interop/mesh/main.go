// Command mesh runs a mirror of many clusters, and measures the costs and whether the copy is right.
//
//	go run ./mesh -isthmus PATH -etcd PATH -clusters 250 -shape serve
//	go run ./mesh -isthmus PATH -etcd PATH -clusters 250 -shape mirror
//	go run ./mesh -isthmus PATH -etcd PATH -clusters 510 -ips 5682 -rate 3000 -shape serve
//	go run ./mesh -isthmus PATH -etcd PATH -cilium PATH -clusters 50 -shape original -run cold,restart
//	go run ./mesh -isthmus PATH -etcd PATH -clusters 20 -run chaos,millions,kills,wiped
//	go run ./mesh -isthmus PATH -etcd PATH -clusters 200 -nodes 300 -identities 500 -ips 15000 -run scope
//	unshare -rn go run ./mesh -isthmus PATH -etcd PATH -clusters 20 -run partition -away 5m
//	unshare -rn go run ./mesh -isthmus PATH -etcd PATH -run replicas -seconds 1200
//
// All processes share the machine, so only figures of one run can be compared.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"isthmus.dev/interop/peer"
)

var (
	isthmus  = flag.String("isthmus", "", "path of Isthmus")
	etcdBin  = flag.String("etcd", "", "path of etcd")
	cilium   = flag.String("cilium", "", "path of Cilium's clustermesh-apiserver")
	base     = flag.String("dir", os.TempDir(), "directory for data directories")
	clusters = flag.Int("clusters", 250, "number of remote clusters")
	ipsPer   = flag.Int("ips", 1000, "addresses per remote cluster")
	nodesPer = flag.Int("nodes", 100, "nodes per remote cluster")
	// Addresses have the identities one after the other.
	identitiesPer = flag.Int("identities", 100, "identities per remote cluster")
	shape         = flag.String("shape", "serve", "serve (mirror and store in one process), mirror (kvstoremesh into an etcd) or original (Cilium's kvstoremesh)")
	runs          = flag.String("run", "cold,churn,restart", "steps to run: cold, churn, restart, chaos, millions, kills, wiped, partition, scope, replicas")
	scopes        = flag.String("scopes", "none,import,edits,export,both", "what to measure with -run scope")
	sourceKind    = flag.String("source", "isthmus", "store of the remote clusters: isthmus or etcd")
	localKind     = flag.String("local", "etcd", "store that the mirror writes to: etcd or isthmus")
	durability    = flag.String("durability", "sync", "--durability of the store, for -shape serve")
	qps           = flag.String("qps", "1000", "rate limit of a mirror into an etcd, in operations per second")
	rate          = flag.Int("rate", 325, "writes per second, over all remote clusters")
	rates         = flag.String("rates", "", "for -run churn: writes per second to be measured one after the other instead of -rate, such as 1000,3000")
	seconds       = flag.Int("seconds", 30, "duration of each phase of writes, in seconds")
	kills         = flag.Int("kills", 20, "number of kills of a remote store or of the mirror")
	away          = flag.Duration("away", 5*time.Minute, "duration of the partition")
	most          = flag.Int("max-connected-clusters", 0, "255 or 511; 0 takes the smaller one that suffices")
	more          = flag.String("args", "", "more arguments for Isthmus's mirror")
	memory        = flag.Int64("memory", 6<<10, "memory of this program, in MiB: more keys than a million need more")
	keep          = flag.Bool("keep", false, "keep the directory with the logs")
)

var findings []string

// finding is an observed error.
func finding(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	findings = append(findings, text)
	progress("FINDING: %s", text)
}

func main() {
	flag.Parse()
	// Pauses of this program's garbage collector would distort the measurements.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(*memory << 20)
	// The client library would log every intended outage.
	os.Setenv("ETCD_CLIENT_DEBUG", "fatal")
	if *most == 0 {
		*most = 255
		if *clusters >= 250 {
			*most = 511
		}
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, text := range findings {
		fmt.Println("FINDING:", text)
	}
	if len(findings) > 0 {
		os.Exit(3)
	}
}

func run() error {
	if *isthmus == "" {
		return errors.New("name Isthmus's binary with -isthmus")
	}
	dir, err := os.MkdirTemp(*base, "mesh-")
	if err != nil {
		return err
	}
	if *keep {
		progress("in %s", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	perSecond, err := ratesOf(*rates)
	if err != nil {
		return err
	}
	ca, err := newAuthority(filepath.Join(dir, "certs"))
	if err != nil {
		return err
	}
	for _, name := range []string{"server", "remote", "admin-local"} {
		if err := ca.issue(name); err != nil {
			return err
		}
	}
	todo := strings.Split(*runs, ",")
	fmt.Printf("%d CPUs, load %.1f, %d clusters of %d keys, shape %s\n", runtime.NumCPU(), peer.Load(), *clusters, *nodesPer+*identitiesPer+*ipsPer, *shape)
	if slices.Contains(todo, "cold") || slices.Contains(todo, "churn") || slices.Contains(todo, "restart") {
		if err := usual(dir, ca, todo, perSecond); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		name string
		f    func(string, *authority) error
	}{{"chaos", chaos}, {"millions", millions}, {"kills", killing}, {"wiped", wiped}, {"partition", partition}, {"scope", scoped}, {"replicas", replicated}} {
		if slices.Contains(todo, c.name) {
			if err := c.f(filepath.Join(dir, c.name), ca); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

// setup starts sources and, if wanted, a mirror of all of them. The caller ends the processes.
func setup(dir string, ca *authority, n int, durable bool, prepare ...func(*source)) (*rig, func(), error) {
	ctx, cancel := context.WithCancel(context.Background())
	var sources []*source
	for i := range n {
		s := newSource(filepath.Join(dir, "sources"), ca, i+1, durable)
		for _, f := range prepare {
			f(s)
		}
		sources = append(sources, s)
	}
	began := time.Now()
	end := func() {
		cancel()
		for _, s := range sources {
			if s.etcd != nil {
				s.kill()
			}
		}
	}
	if err := launch(sources); err != nil {
		return nil, end, err
	}
	progress("%d sources filled in %v, load %.1f", n, since(began), peer.Load())
	go heartbeats(ctx, sources)
	r, err := newRig(dir, *shape, ca, sources)
	if err != nil {
		return r, end, err
	}
	for _, s := range sources {
		if err := r.add(s); err != nil {
			return r, end, err
		}
	}
	return r, func() { r.close(); end() }, nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }

func inMiB(n int64) string { return fmt.Sprintf("%.0f", float64(n)/(1<<20)) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000) }

func inSeconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

// mirrored is a setup of at most 20 sources whose first mirroring is complete.
func mirrored(dir string, ca *authority, prepare ...func(*source)) (*rig, func(), error) {
	r, end, err := setup(dir, ca, min(*clusters, 20), true, prepare...)
	if err != nil {
		return r, end, err
	}
	began := time.Now()
	if err := r.launch(); err != nil {
		return r, end, err
	}
	_, _, err = r.filled(began, time.Minute)
	return r, end, err
}
