package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

const (
	// Changes of manifests per second and cluster.
	changesPerSecond = 15
	// Length of a phase of faults, after which everything must become equal.
	phase = 40 * time.Second
	// How long that may take: the locks of writers that are gone expire after 25 seconds.
	settled = 100 * time.Second
)

// pod is a process on a host, which is started again when it ends, as by a kubelet.
type pod struct {
	*peer.Process
	host *peer.Host
	// Held while the process is stopped on purpose.
	mu       sync.Mutex
	restarts int
}

// side is one of the clusters: an etcd of three members, and three replicas that publish, mirror and serve.
type side struct {
	name     string
	objects  *objects
	dir      string
	members  []*pod
	replicas []*pod
	// A view of the members, and one of the replicas, as an agent has it.
	client, agent *clientv3.Client
	truth, seen   *view
}

// replicated runs a mesh of two clusters with replicas, under kills and partitions.
func replicated(dir string, ca *authority) error {
	network, err := peer.NewNetwork(12)
	if err != nil {
		return fmt.Errorf("partitions need a network of their own: run it all with unshare -rn: %w", err)
	}
	defer network.End()
	for _, h := range network.Hosts() {
		ca.addresses = append(ca.addresses, h.Address)
	}
	if err := ca.issue("pod"); err != nil {
		return err
	}
	var sides []*side
	defer func() {
		for _, s := range sides {
			s.close()
		}
	}()
	for i, name := range []string{"east", "west"} {
		s, err := newSide(filepath.Join(dir, name), name, i+1, network.Hosts()[6*i:6*i+6])
		if err != nil {
			return err
		}
		sides = append(sides, s)
	}
	for i, s := range sides {
		if err := s.start(ca, sides[1-i]); err != nil {
			return err
		}
	}
	f := &faults{network: network, sides: sides, counts: map[string]int{}, stop: make(chan struct{})}
	for _, s := range sides {
		for _, p := range slices.Concat(s.members, s.replicas) {
			go f.supervise(p)
		}
	}
	defer close(f.stop)
	if f.settle("at first"); len(findings) > 0 {
		return nil
	}
	var took []time.Duration
	changes := 0
	for end := time.Now().Add(time.Duration(*seconds) * time.Second); time.Now().Before(end); {
		n, d := f.phase(len(took)+1, min(phase, time.Until(end)))
		took, changes = append(took, d), changes+n
	}
	f.report(took, changes)
	return nil
}

func newSide(dir, name string, id int, hosts []*peer.Host) (*side, error) {
	s := &side{name: name, dir: dir}
	var err error
	if s.objects, err = newObjects(filepath.Join(dir, "manifests"), name, id); err != nil {
		return nil, err
	}
	var initial, urls []string
	for i, h := range hosts[:3] {
		initial = append(initial, fmt.Sprintf("m%d=http://%s:2380", i, h.Address))
		urls = append(urls, fmt.Sprintf("http://%s:2379", h.Address))
	}
	for i, h := range hosts[:3] {
		peerURL := fmt.Sprintf("http://%s:2380", h.Address)
		s.members = append(s.members, s.pod(fmt.Sprint("m", i), h, *etcdBin, fmt.Sprint("--name=m", i),
			"--data-dir="+filepath.Join(dir, fmt.Sprint("m", i)), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls="+urls[i], "--advertise-client-urls="+urls[i], "--listen-peer-urls="+peerURL,
			"--initial-advertise-peer-urls="+peerURL, "--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-token="+name,
			"--auto-compaction-mode=periodic", "--auto-compaction-retention=2m"))
	}
	follow := filepath.Join(dir, "upstream.yaml")
	if err := os.WriteFile(follow, []byte("endpoints:\n- "+strings.Join(urls, "\n- ")+"\n"), 0o600); err != nil {
		return nil, err
	}
	for i, h := range hosts[3:] {
		s.replicas = append(s.replicas, s.pod(fmt.Sprint("replica", i), h, *isthmus, "serve", "--cluster-name="+name, fmt.Sprint("--cluster-id=", id),
			"--manifests="+s.objects.dir, "--follow="+follow, "--clustermesh-config="+s.remotes(), s.url(h),
			"--api-serve-addr=127.0.0.1:9889", "--health-port=9880", "--prometheus-serve-addr=0.0.0.0:9963"))
	}
	s.client, err = clientv3.New(clientv3.Config{Endpoints: urls, DialOptions: quick(), DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second})
	return s, err
}

func (s *side) remotes() string { return filepath.Join(s.dir, "remotes") }

func (s *side) url(h *peer.Host) string {
	return fmt.Sprintf("--listen-client-urls=https://%s:2379", h.Address)
}

func (s *side) pod(name string, h *peer.Host, bin string, args ...string) *pod {
	name = s.name + " " + name
	p := &pod{Process: &peer.Process{Name: name, Bin: bin, Args: args, Log: filepath.Join(s.dir, name+".log")}, host: h}
	h.Run(p.Process)
	return p
}

// start starts the cluster, which mirrors the other one, and the views of it.
func (s *side) start(ca *authority, other *side) error {
	var urls, theirs []string
	for i := range s.replicas {
		urls = append(urls, fmt.Sprintf("https://%s:2379", s.replicas[i].host.Address))
		theirs = append(theirs, fmt.Sprintf("https://%s:2379", other.replicas[i].host.Address))
	}
	text := fmt.Sprintf("endpoints:\n- %s\ntrusted-ca-file: %s\nkey-file: %s\ncert-file: %s\n",
		strings.Join(theirs, "\n- "), ca.ca(), ca.secret("remote"), ca.crt("remote"))
	err := errors.Join(os.MkdirAll(s.remotes(), 0o700), os.WriteFile(filepath.Join(s.remotes(), other.name), []byte(text), 0o600))
	for _, p := range s.members {
		err = errors.Join(err, p.Start())
	}
	for _, p := range s.replicas {
		p.Args = append(p.Args, "--cert-file="+ca.crt("pod"), "--key-file="+ca.secret("pod"), "--trusted-ca-file="+ca.ca())
		err = errors.Join(err, p.Start())
	}
	if err != nil {
		return err
	}
	config, err := ca.tls("admin-local")
	if err != nil {
		return err
	}
	s.agent, err = clientv3.New(clientv3.Config{
		Endpoints: urls, TLS: config, DialOptions: quick(), DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
	})
	if err != nil {
		return err
	}
	s.truth, s.seen = newView(s.client, s.objects, other.objects), newView(s.agent, s.objects, other.objects)
	return nil
}

func (s *side) close() {
	for _, v := range []*view{s.truth, s.seen} {
		if v != nil {
			v.end()
		}
	}
	for _, p := range slices.Concat(s.replicas, s.members) {
		p.mu.Lock()
		p.Stop(syscall.SIGKILL)
		p.mu.Unlock()
	}
}

// differ lists what is not as it must be.
func (s *side) differ() []string {
	wrong := s.truth.differ()
	if truth, seen := s.truth.trail(), s.seen.trail(); truth != seen {
		wrong = append(wrong, fmt.Sprintf("at the replicas of %s, %s; at its members, %s", s.name, seen, truth))
	}
	return wrong
}

// === phases ===

// phase makes changes and faults for a while, and waits until everything is equal.
func (f *faults) phase(n int, length time.Duration) (changes int, took time.Duration) {
	var stop atomic.Bool
	var writers, others sync.WaitGroup
	var made atomic.Int64
	for _, s := range f.sides {
		writers.Go(func() { made.Add(int64(s.objects.churn(changesPerSecond, &stop))) })
	}
	end := time.Now().Add(length)
	for _, fault := range []func(*rand.Rand, time.Time){f.processes, f.links} {
		rng := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
		others.Go(func() { fault(rng, end) })
	}
	others.Wait()
	stop.Store(true)
	writers.Wait()
	return int(made.Load()), f.settle(fmt.Sprint("phase ", n))
}

// settle waits until both clusters are as they must be.
func (f *faults) settle(title string) time.Duration {
	began := time.Now()
	var wrong []string
	for time.Since(began) < settled {
		wrong = nil
		for _, s := range f.sides {
			wrong = append(wrong, s.differ()...)
		}
		if len(wrong) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(began)
	if len(wrong) > 0 {
		finding("%s: after %v %d differences: %s", title, since(began), len(wrong), strings.Join(wrong[:min(6, len(wrong))], "; "))
		f.tell(wrong)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	progress("%s: equal after %v, load %.1f; %v", title, took.Round(10*time.Millisecond), peer.Load(), f.counts)
	return took
}

// tell prints what happened to the first keys that are named.
func (f *faults) tell(texts []string) {
	told := 0
	for _, text := range texts {
		for _, word := range strings.Fields(text) {
			if !strings.HasPrefix(word, "cilium/") || told > 5 {
				continue
			}
			for _, s := range f.sides {
				if s.truth.knows(word) {
					told++
					progress("in the etcd of %s, %s", s.name, s.truth.tell(word))
				}
			}
		}
	}
}

func (f *faults) report(took []time.Duration, changes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(took)
	rows := [][]string{{"cluster", "changed", "deleted", "wrongly", "written again", "events at members", "at replicas", "compacted", "restarts of replicas"}}
	for _, s := range f.sides {
		restarts := 0
		for _, p := range s.replicas {
			restarts += p.restarts
		}
		t, a := s.truth, s.seen
		rows = append(rows, []string{s.name, fmt.Sprint(t.puts), fmt.Sprint(t.gone), fmt.Sprint(len(t.wronged)), fmt.Sprint(len(t.same)), fmt.Sprint(t.events), fmt.Sprint(a.events),
			fmt.Sprint(t.compacted + a.compacted), fmt.Sprint(restarts)})
		if len(t.wronged) > 0 {
			finding("%s: %d keys were deleted that should be there: %s", s.name, len(t.wronged), strings.Join(t.wronged[:min(5, len(t.wronged))], "; "))
			f.tell(t.wronged)
		}
		if len(t.same) > 0 {
			finding("%s: %d keys were written again unchanged: %s", s.name, len(t.same), strings.Join(t.same[:min(5, len(t.same))], "; "))
			f.tell(t.same)
		}
		if t.compacted+a.compacted > 0 {
			finding("%s: a watch was compacted: %d times at members, %d at replicas", s.name, t.compacted, a.compacted)
		}
	}
	peer.Table(rows)
	fmt.Printf("%d phases, %d changes; equal after s: median %s, max %s; faults: %v\n", len(took), changes, inSeconds(took[len(took)/2]), inSeconds(took[len(took)-1]), f.counts)
}
