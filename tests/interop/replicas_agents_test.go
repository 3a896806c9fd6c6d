package interop

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"isthmus.dev/interop/peer"
)

// Agents with Cilium's own client packages are moved between two replicas, while the etcd compacts: nobody lists again, and
// everybody sees every event once. `make interop-cilium` builds the agents and passes their path in CILIUM_AGENTS.
var (
	agentCount = flag.Int("replicas.agents", 200, "number of agents")
	agentMoves = flag.Int("replicas.moves", 10, "number of moves of all agents to the other replica")
)

// What agents watch; nothing happens below the last one.
var agentPrefixes = []string{
	"cilium/state/nodes/v1/", "cilium/state/services/v1/", "cilium/state/identities/v1/id/", "cilium/state/ip/v1/default/",
	"cilium/state/serviceexports/v1/",
}

// agentTrail is what a watch of a prefix shows: the number of keys at first, and the events since.
type agentTrail struct {
	Listed int
	Synced bool
	Events int
	Sum    uint64
}

// add adds an event, as Cilium's packages name it.
func (t *agentTrail) add(kind, key, value string) {
	sum := fnv.New64a()
	fmt.Fprintf(sum, "%d %s %s=%s", t.Sum, kind, key, value)
	t.Events++
	t.Sum = sum.Sum64()
}

// agents is the process with the agents.
type agents struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// agentsSaw is the report of the agents.
type agentsSaw struct {
	Agents, Pages, Runs int
	Trails              map[string][]struct {
		Trail  agentTrail
		Agents int
	}
}

func startAgents(t *testing.T, address string) *agents {
	t.Helper()
	cmd := exec.Command(os.Getenv("CILIUM_AGENTS"), address, fmt.Sprint(*agentCount))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, out := try(cmd.StdinPipe()).or(t), try(cmd.StdoutPipe()).or(t)
	log := try(os.Create(t.TempDir() + "/agents.log")).or(t)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("last lines of the agents:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return &agents{t, in, bufio.NewReader(out)}
}

func (a *agents) saw() (saw agentsSaw) {
	a.t.Helper()
	try(fmt.Fprintln(a.in)).or(a.t)
	if err := json.Unmarshal(try(a.out.ReadBytes('\n')).or(a.t), &saw); err != nil {
		a.t.Fatal(err)
	}
	return saw
}

// all waits until all agents have seen this, and returns their report.
func (a *agents) all(what string, want map[string]*agentTrail) (saw agentsSaw) {
	a.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		saw = a.saw()
		equal := saw.Agents == *agentCount
		for prefix, t := range want {
			found := saw.Trails[prefix]
			equal = equal && len(found) == 1 && found[0].Trail == *t && found[0].Agents == *agentCount
		}
		if equal {
			return saw
		}
	}
	for prefix, t := range want {
		a.t.Errorf("%s: below %s, agents saw %+v, expected %+v", what, prefix, saw.Trails[prefix], *t)
	}
	a.t.FailNow()
	return saw
}

// agentWrites writes keys below all prefixes but the last until it is stopped, and adds the events to the trails.
func agentWrites(t *testing.T, c *clientv3.Client, trails map[string]*agentTrail, stop *atomic.Bool, done chan<- int) {
	there := map[string]bool{}
	for _, prefix := range agentPrefixes {
		for n := range trails[prefix].Listed {
			there[fmt.Sprint(prefix, n)] = true
		}
	}
	writes := 0
	defer func() { done <- writes }()
	put := func(key, value string) bool {
		_, err := c.Put(ctx(t), key, value)
		if err != nil {
			t.Errorf("write of %s: %v", key, err)
		}
		return err == nil
	}
	for beat := (time.Time{}); !stop.Load(); writes++ {
		prefix := agentPrefixes[writes%(len(agentPrefixes)-1)]
		key, value := fmt.Sprint(prefix, writes*7%300), fmt.Sprint("value ", writes)
		if writes%5 == 0 && there[key] {
			if _, err := c.Delete(ctx(t), key); err != nil {
				t.Errorf("deletion of %s: %v", key, err)
				return
			}
			delete(there, key)
			trails[prefix].add("delete", key, "")
		} else {
			if !put(key, value) {
				return
			}
			trails[prefix].add(map[bool]string{true: "modify", false: "create"}[there[key]], key, value)
			there[key] = true
		}
		if time.Since(beat) > 10*time.Second {
			beat = time.Now()
			put("cilium/.heartbeat", beat.Format(time.RFC3339))
		}
		time.Sleep(8 * time.Millisecond)
	}
}

func TestReplicasAgents(t *testing.T) {
	if os.Getenv("CILIUM_AGENTS") == "" {
		t.Skip("CILIUM_AGENTS is not set: run `make interop-cilium`")
	}
	// Hours in fast time: what the chart's etcd does in an hour, this one does in 30 seconds. Quiet watches are told their progress
	// after ten.
	m := cluster(t, 3, "--auto-compaction-mode=periodic", "--auto-compaction-retention=30s")
	replicas := replicasOf(t, 2, m.addresses(), "--history=30s", "--progress-to-quiet-watches=true")
	c := m.kept[0].client(t)
	defer c.Close()
	trails := map[string]*agentTrail{}
	for i := range *agentCount {
		try(c.Put(ctx(t), fmt.Sprintf("cilium/cluster-config/agent-%03d", i), `{"id":1,"capabilities":{}}`)).or(t)
	}
	try(c.Put(ctx(t), "cilium/.heartbeat", time.Now().Format(time.RFC3339))).or(t)
	for _, prefix := range agentPrefixes {
		trails[prefix] = &agentTrail{Listed: 100, Synced: true}
		for n := range 100 {
			try(c.Put(ctx(t), fmt.Sprint(prefix, n), "first")).or(t)
		}
	}
	b := try(peer.NewBalancer(replicas[0].address)).or(t)
	defer b.Close()
	a := startAgents(t, b.Address())
	before := a.all("at first", trails)
	var stop atomic.Bool
	done := make(chan int, 1)
	go agentWrites(t, c, trails, &stop, done)
	var moved []int
	for n := range *agentMoves {
		time.Sleep(11 * time.Second)
		old, next := replicas[n%2], replicas[(n+1)%2]
		// Every other move is a loss of the replica, which comes back without what it had.
		if n%4 > 1 {
			old.Stop(syscall.SIGKILL)
		}
		moved = append(moved, b.Move(next.address))
		if n%4 > 1 {
			if err := old.Start(); err != nil {
				t.Fatal(err)
			}
			old.answers(t)
		}
		if now := a.saw(); now.Pages != before.Pages || now.Runs != before.Runs {
			t.Errorf("after move %d, the agents have listed: %d pages and %d connections more", n+1, now.Pages-before.Pages, now.Runs-before.Runs)
		}
	}
	stop.Store(true)
	writes := <-done
	after := a.all("at the end", trails)
	compacted := figure(t, m.kept[0].server, "etcd_debugging_mvcc_compact_revision")
	events := 0
	for _, seen := range trails {
		events += seen.Events
	}
	t.Logf("%d agents, %d writes, %d events each; connections closed by moves: %v; %d pages of lists at first, %d later; the etcd compacted up to %v",
		*agentCount, writes, events, moved, before.Pages, after.Pages-before.Pages, compacted)
	if after.Pages != before.Pages || after.Runs != before.Runs {
		t.Errorf("agents have listed again: %d pages, %d connections", after.Pages-before.Pages, after.Runs-before.Runs)
	}
	if compacted < 100 {
		t.Errorf("the etcd has compacted only up to %v", compacted)
	}
}
