package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// The faults under which watchers hop.

// kills kills and stops members and replicas, never two at a time, moves the leader and defragments.
func (h *hops) kills(rng *rand.Rand, end time.Time) {
	for time.Now().Before(end) {
		time.Sleep(time.Duration(300+rng.IntN(700)) * time.Millisecond)
		all := h.endpoints()
		k := all[rng.IntN(len(all))]
		switch rng.IntN(6) {
		case 0:
			h.moveLeader(h.m.kept[rng.IntN(3)].server)
			h.count("moves of the leader", 1)
		case 1:
			// The member answers nobody meanwhile.
			c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, _ = pb.NewMaintenanceClient(connectionTo(h.m.kept[rng.IntN(3)].address)).Defragment(c, &pb.DefragmentRequest{})
			cancel()
			h.count("defragmentations", 1)
		case 2:
			_ = k.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(200+rng.IntN(1500)) * time.Millisecond)
			_ = k.Signal(syscall.SIGCONT)
			h.count("pauses", 1)
		default:
			h.kill(k, syscall.SIGKILL, time.Duration(rng.IntN(500))*time.Millisecond)
			h.count("kills", 1)
		}
	}
}

// kill ends a process, starts it again after a while, and waits until it answers.
func (h *hops) kill(k *kept, sig syscall.Signal, away time.Duration) {
	k.Stop(sig)
	time.Sleep(away)
	if err := k.Start(); err != nil {
		h.t.Errorf("%s: %v", k.Name, err)
		return
	}
	for deadline := time.Now().Add(patience); revisionOf(k.server, false) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Errorf("%s does not answer %v after its start", k.Name, patience)
			return
		}
	}
}

// moveLeader makes another member the leader. The leader alone can do that.
func (h *hops) moveLeader(to *server) {
	c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	target, err := pb.NewMaintenanceClient(connectionTo(to.address)).Status(c, &pb.StatusRequest{})
	if err != nil {
		return
	}
	for _, k := range h.m.kept {
		own := pb.NewMaintenanceClient(connectionTo(k.address))
		if s, err := own.Status(c, &pb.StatusRequest{}); err == nil && s.Leader == s.Header.MemberId {
			_, _ = own.MoveLeader(c, &pb.MoveLeaderRequest{TargetID: target.Header.MemberId})
		}
	}
}

// compactions compacts the etcd about once a second, at any endpoint, as far as no watcher and no replica needs the history.
func (h *hops) compactions(rng *rand.Rand) {
	here := make([]int64, len(h.replicas))
	for compacted := int64(0); !h.stop.Load(); time.Sleep(time.Duration(500+rng.IntN(1000)) * time.Millisecond) {
		h.history.collect(h.m.kept[rng.IntN(3)].server, 3*time.Second)
		needed := h.history.next
		for _, w := range h.watches {
			needed = min(needed, w.next.Load())
		}
		for i, r := range h.replicas {
			// A replica that does not answer has what it had at least.
			here[i] = max(here[i], revisionOf(r.server, true))
			needed = min(needed, here[i]+1)
		}
		if needed-1 <= max(compacted, 1) {
			continue
		}
		all := h.endpoints()
		c, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		q := &pb.CompactionRequest{Revision: needed - 1, Physical: rng.IntN(2) == 0}
		if _, err := pb.NewKVClient(connectionTo(all[rng.IntN(len(all))].address)).Compact(c, q); err == nil {
			compacted = needed - 1
			h.count("compactions", 1)
		}
		cancel()
	}
}

// === the network ===

// hostPair is two hosts; nil is this program, in which the clients are.
type hostPair [2]*peer.Host

// cuts cuts hosts off from each other, and lets links be slow.
func (h *hops) cuts(rng *rand.Rand, end time.Time) {
	hosts := h.net.Hosts()
	for time.Now().Before(end) {
		time.Sleep(time.Duration(200+rng.IntN(800)) * time.Millisecond)
		length := time.Duration(300+rng.IntN(2500)) * time.Millisecond
		if rng.IntN(12) == 0 {
			// Longer than the silence after which a replica looks for another member.
			length = 13 * time.Second
		}
		if rng.IntN(5) == 0 {
			slow := hosts[rng.IntN(len(hosts))]
			if err := h.net.Slow(slow, 100<<rng.IntN(5)); err != nil {
				h.t.Errorf("a slow link: %v", err)
				return
			}
			time.Sleep(length)
			if err := h.net.Fast(slow); err != nil {
				h.t.Errorf("the end of a slow link: %v", err)
			}
			h.count("slow links", 1)
			continue
		}
		kind, pairs := partition(rng, hosts[:3], hosts[3:])
		way := rng.IntN(3)
		change := func(f func(from, to *peer.Host) error) {
			for _, p := range pairs {
				if way != 1 {
					if err := f(p[0], p[1]); err != nil {
						h.t.Error(err)
					}
				}
				if way != 2 {
					if err := f(p[1], p[0]); err != nil {
						h.t.Error(err)
					}
				}
			}
		}
		change(h.net.Cut)
		time.Sleep(length)
		change(h.net.Heal)
		h.count(fmt.Sprintf("cuts %s, %s", kind, []string{"both ways", "answers", "requests"}[way]), 1)
	}
}

// partition chooses pairs that are cut off from each other.
func partition(rng *rand.Rand, members, replicas []*peer.Host) (kind string, pairs []hostPair) {
	m, r := rng.IntN(len(members)), rng.IntN(len(replicas))
	from := func(one *peer.Host, others ...*peer.Host) {
		for _, other := range others {
			if other != one {
				pairs = append(pairs, hostPair{one, other})
			}
		}
	}
	switch rng.IntN(6) {
	case 0:
		kind = "of a replica from a member"
		from(replicas[r], members[m])
	case 1:
		kind = "of a replica from all members"
		from(replicas[r], members...)
	case 2:
		kind = "of clients from a replica"
		from(nil, replicas[r])
	case 3:
		kind = "of two members"
		from(members[m], members[(m+1)%len(members)])
	case 4:
		kind = "of a member from the members"
		from(members[m], members...)
	case 5:
		kind = "of a member from everybody"
		from(members[m], append(slices.Concat(members, replicas), nil)...)
	}
	return kind, pairs
}

// alone says whether this program has a network of its own. If not, it runs the test again in one, and the test is over.
func alone(t *testing.T) bool {
	t.Helper()
	isthmusBin(t)
	peerBin(t, "etcd")
	if peer.Alone() {
		return true
	}
	if err := peer.MayBeAlone(); err != nil {
		t.Skip(err)
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool {
		return strings.HasPrefix(a, "-test.run=") || strings.HasPrefix(a, "-test.skip=") || strings.HasPrefix(a, "-test.testlogfile=")
	})
	if err := peer.RunAlone(append(args, "-test.run=^"+t.Name()+"$")...).Run(); err != nil {
		t.Errorf("in a network of its own: %v", err)
	}
	return false
}

// TestReplicasSlowLinkBehind lets a replica fall behind by some megabytes, and gives it a link that needs longer than the feed's patience
// for them: it must catch up, slowly.
func TestReplicasSlowLinkBehind(t *testing.T) {
	if !alone(t) {
		return
	}
	net := try(peer.NewNetwork(2)).or(t)
	t.Cleanup(net.End)
	hosts := net.Hosts()
	m := clusterOn(t, hosts[:1])
	r := replicaOn(t, hosts[1], "replica", upstreamFile(m.addresses()))
	r.answers(t)
	both := func(f func(from, to *peer.Host) error) {
		for i := range hosts {
			if err := f(hosts[i], hosts[1-i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	both(net.Cut)
	c := m.kept[0].client(t)
	defer c.Close()
	var last int64
	for n := range 60 {
		last = try(c.Put(ctx(t), fmt.Sprint("slow/", n), strings.Repeat("x", 50_000))).or(t).Header.Revision
	}
	if err := net.Slow(hosts[1], 1000); err != nil {
		t.Fatal(err)
	}
	both(net.Heal)
	// 3 MB at 1 Mbit/s take 24 s.
	began := time.Now()
	for time.Since(began) < 150*time.Second {
		if revisionOf(r.server, true) >= last {
			t.Logf("caught up after %v", time.Since(began))
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Errorf("the replica is at revision %d of %d after %v", revisionOf(r.server, true), last, time.Since(began))
}

// === disks ===

// TestReplicasFullDisk fills the disk of a replica, which goes on without its copy: nobody is refused, no event is missing, and a
// start from what is left of the copy shows the same.
func TestReplicasFullDisk(t *testing.T) {
	if !alone(t) {
		return
	}
	if err := peer.Loopback(); err != nil {
		t.Fatal(err)
	}
	disk := t.TempDir()
	if err := syscall.Mount("disk", disk, "tmpfs", 0, "size=96m"); err != nil {
		t.Skipf("no disk of its own: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	m := cluster(t, 1)
	c := m.kept[0].client(t)
	defer c.Close()
	first := write(t, c, "before", 10) + 1
	r := replicaOf(t, "replica", m.addresses(), "--data-dir="+filepath.Join(disk, "data"), "--checkpoint-bytes=1000000")
	r.answers(t)
	rc := r.client(t)
	defer rc.Close()
	watch := rc.Watch(watching(t), "", clientv3.WithPrefix(), clientv3.WithRev(first))
	filler := try(os.Create(filepath.Join(disk, "filler"))).or(t)
	for block := make([]byte, 1<<16); ; {
		if _, err := filler.Write(block); err != nil {
			break
		}
	}
	value := strings.Repeat("x", 25_000)
	for n := range 1500 {
		// Half of the writes go through the replica.
		try([]*clientv3.Client{c, rc}[n%2].Put(ctx(t), fmt.Sprint("large/", n%20), fmt.Sprint(n, value))).or(t)
	}
	last := try(rc.Put(ctx(t), "large/last", "")).or(t).Header.Revision
	bringsAll(t, watch, first, last)
	same(t, m, r)
	if full := figure(t, r.server, "isthmus_durable_disk_full"); full != 1 {
		t.Errorf("isthmus_durable_disk_full is %v: the disk was not full", full)
	}
	// It is killed with a full disk, and once more when there is room again.
	for _, size := range []int64{-1, 0} {
		if size == 0 {
			try(0, filler.Truncate(0)).or(t)
			last = write(t, c, "after", 100)
			reachedBy(t, r, last)
		}
		r.down(t, syscall.SIGKILL)
		r.up(t)
		same(t, m, r)
	}
}
