package interop

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"isthmus.dev/interop/peer"
)

// Other versions: of the etcd, while it is upgraded, and of the replicas, while they are.

// catchUp is the flag of an etcd for the number of entries that it keeps for a member that is behind; 3.5 has another one.
func catchUp(t testing.TB, bin string) string {
	t.Helper()
	flag := "snapshot-catchup-entries=20"
	if version := try(exec.Command(bin, "--version").Output()).or(t); strings.Contains(string(version), "Version: 3.5") {
		return "--experimental-" + flag
	}
	return "--" + flag
}

// TestReplicasUpgrade replaces the members of an etcd by those of the next version, one after the other, under its replicas: from 3.5 or
// 3.6, whichever is there, to 3.7.
func TestReplicasUpgrade(t *testing.T) {
	newest := peerBin(t, "etcd")
	var versions []string
	for _, older := range []string{"etcd35", "etcd36"} {
		bin := filepath.Join(filepath.Dir(newest), older, "etcd")
		if _, err := os.Stat(bin); err == nil {
			versions = append(versions, bin)
		}
	}
	if len(versions) == 0 {
		t.Skip("there is no earlier etcd")
	}
	versions = append(versions, newest)
	t.Setenv("PEERS_BIN", filepath.Dir(versions[0]))
	h := newHops(t, nil, make([]*peer.Host, 6))
	h.run(len(versions)-1, func(*rand.Rand, time.Time) {
		from, to := versions[h.round], versions[h.round+1]
		for _, k := range h.m.kept {
			time.Sleep(time.Second)
			k.Bin = to
			for i, arg := range k.Args {
				if arg == catchUp(t, from) {
					k.Args[i] = catchUp(t, to)
				}
			}
			h.kill(k, syscall.SIGTERM, 0)
		}
		time.Sleep(time.Second)
	})
	for _, r := range h.replicas {
		status := try(pb.NewMaintenanceClient(connectionTo(r.address)).Status(ctx(t), &pb.StatusRequest{})).or(t)
		if !strings.HasPrefix(status.Version, "3.7") {
			t.Errorf("%s says that it is etcd %s", r.Name, status.Version)
		}
	}
}

// TestReplicasOlderBeside lets replicas of an older version, whose path is in ISTHMUS_OLDER, serve beside those of this one, under watchers
// that hop between them. Each replica changes its version again and again: it continues from the directory of the other version, or
// loads from a sister of either.
func TestReplicasOlderBeside(t *testing.T) {
	older, newer := os.Getenv("ISTHMUS_OLDER"), isthmusBin(t)
	if older == "" {
		t.Skip("ISTHMUS_OLDER is not set: run `make replicas-older`")
	}
	peers := filepath.Join(t.TempDir(), "peers.yaml")
	h := newHops(t, nil, make([]*peer.Host, 6), "--peers="+peers)
	var addresses []string
	for _, r := range h.replicas {
		addresses = append(addresses, r.address)
	}
	if err := os.WriteFile(peers, []byte(upstreamFile(addresses)), 0o600); err != nil {
		t.Fatal(err)
	}
	h.run(*hopRounds, func(rng *rand.Rand, end time.Time) {
		for time.Now().Before(end) {
			time.Sleep(time.Duration(300+rng.IntN(700)) * time.Millisecond)
			k := h.replicas[rng.IntN(len(h.replicas))].kept
			what := "starts of the older version"
			if k.Bin = older; rng.IntN(2) == 0 {
				k.Bin, what = newer, "starts of this version"
			}
			h.kill(k, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[rng.IntN(2)], 0)
			h.count(what, 1)
		}
	})
	log := string(try(os.ReadFile(h.replicas[0].Log)).or(t))
	if !strings.Contains(log, "the keys of another replica are loaded") {
		t.Error("the replica without a directory was never loaded from a sister")
	}
	for _, r := range h.replicas {
		for _, name := range []string{"isthmus_follow_gaps_total", "isthmus_follow_divergences_total"} {
			if got := figure(t, r.server, name); got != 0 {
				t.Errorf("%s: %s is %v", r.Name, name, got)
			}
		}
	}
}
