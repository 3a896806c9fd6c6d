// Command adversary attacks a server, with an honest client beside, and says whether the honest client was hurt.
//
//	go run . -isthmus PATH -etcd PATH                     every attack, in a few minutes
//	go run . -isthmus PATH -only http2,work -seconds 10   the attacks whose names begin so
//	go run . -isthmus PATH -only random -minutes 30 -seed 7
//
// README.md explains the attacks and the table. The exit code is 1 if Isthmus breaks a bound; etcd is shown for comparison.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"isthmus.dev/interop/peer"
)

var (
	isthmus = flag.String("isthmus", "", "path of Isthmus")
	etcd    = flag.String("etcd", "", "path of etcd; empty: Isthmus alone")
	only    = flag.String("only", "", "comma-separated beginnings of the names of attacks; empty: all")
	scale   = flag.String("scale", "small", "counts of the attacks: small or full")
	seconds = flag.Float64("seconds", 0, "duration of each attack, in seconds; 0: 1 in small scale, 10 in full scale")
	minutes = flag.Float64("minutes", 0, "duration of the random attack, in minutes; 0: as -seconds")
	seed    = flag.Uint64("seed", 0, "seed of the random attack; 0: from the clock")
	retries = flag.Int("retries", 2, "repetitions of an attack on Isthmus whose bound broke while the machine stalled, too; see -noisy")
	noisy   = flag.Duration("noisy", 60*time.Millisecond, "stall of the machine from which a broken bound is tried again; 0: always")
	asJSON  = flag.Bool("json", false, "print results as JSON, one object a line, instead of a table")
	list    = flag.Bool("list", false, "list the attacks")
	base    = flag.String("dir", os.TempDir(), "directory for data directories")

	attacks = flag.Bool("attack", false, "for this program's own use: attack as standard input orders")
	echo    = flag.String("echo", "", "for this program's own use: echo at this address")
)

func main() {
	flag.Parse()
	var err error
	switch {
	case *attacks:
		err = attackAsOrdered()
	case *echo != "":
		err = serveEcho(*echo)
	case *list:
		for _, r := range rows {
			what := r.what
			if r.full {
				what += " (full scale, or by name)"
			}
			fmt.Printf("%-28s %s\n", r.name, what)
		}
	default:
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if *isthmus == "" && *etcd == "" {
		return fmt.Errorf("name a server with -isthmus or -etcd")
	}
	if *scale != "small" && *scale != "full" {
		return fmt.Errorf("-scale is %q: give small or full", *scale)
	}
	dir, err := os.MkdirTemp(*base, "adversary-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	arena, err := newArena(dir)
	if err != nil {
		return err
	}
	defer arena.close()
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, os.Interrupt, syscall.SIGTERM)
	var results []result
	for _, r := range selected() {
		for _, server := range servers() {
			if r.oursOnly && server.etcd {
				continue
			}
			select {
			case <-stopped:
				return fmt.Errorf("interrupted")
			default:
			}
			got := arena.repeat(r, server)
			results = append(results, got)
			if *asJSON {
				text, err := json.Marshal(got)
				if err != nil {
					return err
				}
				fmt.Println(string(text))
			} else {
				fmt.Fprintln(os.Stderr, got.line())
			}
		}
	}
	return conclude(results)
}

func conclude(results []result) error {
	if len(results) == 0 {
		return fmt.Errorf("no attack has such a name: -list shows them")
	}
	if !*asJSON {
		table(results)
	}
	broken := 0
	for _, r := range results {
		if !r.OK() && r.Server == "isthmus" {
			broken++
		}
	}
	if broken > 0 {
		return fmt.Errorf("%d of the attacks broke a bound of Isthmus", broken)
	}
	return nil
}

// row is an attack, with the bounds that must hold during and after it.
type row struct {
	name, what string
	attack     func(*attacker) error
	fixture
	// stall bounds the longest operation of the honest client; 0: 250 ms.
	stall time.Duration
	// seconds is the least duration that the attack needs, in small and full scale.
	seconds [2]float64
	// flat demands memory that does not grow after the first tenth of the time.
	flat bool
	// full leaves the row out in small scale, unless -only names it.
	full bool
	// oursOnly is for the parts of Isthmus that etcd does not have.
	oursOnly bool
}

var rows = slices.Concat(descriptorRows, workRows, watcherRows, http2Rows, hoardingRows, handshakeRows, honestRows,
	passwordRows, leaseRows, electionRows, documentRows, idleRows, randomRows)

func selected() []row {
	names := strings.FieldsFunc(*only, func(r rune) bool { return r == ',' })
	return slices.DeleteFunc(slices.Clone(rows), func(r row) bool {
		if len(names) == 0 {
			return r.full && *scale != "full"
		}
		return !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(r.name, name) })
	})
}

// duration is the time of the attack.
func (r row) duration() time.Duration {
	if r.flat && *minutes > 0 {
		return time.Duration(*minutes * float64(time.Minute))
	}
	s, least := *seconds, r.seconds[0]
	full := *scale == "full"
	if full {
		least = r.seconds[1]
	}
	if s == 0 {
		s = 1
		if full {
			s = 10
		}
	}
	return time.Duration(max(s, least) * float64(time.Second))
}

type server struct {
	name, bin string
	etcd      bool
}

func servers() (all []server) {
	if *isthmus != "" {
		all = append(all, server{name: "isthmus", bin: absolute(*isthmus)})
	}
	if *etcd != "" {
		all = append(all, server{name: "etcd", bin: absolute(*etcd), etcd: true})
	}
	return all
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// === output ===

func ms(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond)) }

func mib(n int64) string { return fmt.Sprintf("%.0f", float64(n)/(1<<20)) }

func table(results []result) {
	lines := [][]string{{"attack", "server", "RSS MiB", "growth", "after", "CPU s", "p99 ms", "longest ms", "of", "machine ms", "verdict"}}
	for _, r := range results {
		worst := r.worst()
		verdict := "holds"
		if !r.OK() {
			verdict = "BROKEN"
		}
		lines = append(lines, []string{r.Attack, r.Server, mib(r.Before), mib(r.Growth), mib(r.After), fmt.Sprintf("%.1f", r.CPU.Seconds()),
			ms(worst.P99), ms(worst.Longest), worst.Kind, ms(r.Machine), verdict})
	}
	peer.Table(lines)
	fmt.Println()
	for _, r := range results {
		if len(r.Broken) > 0 {
			fmt.Printf("%s on %s: %s\n", r.Attack, r.Server, strings.Join(r.Broken, "; "))
		}
	}
}
