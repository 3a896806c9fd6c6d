package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// scribbled is the result of TestScribble: the files by name, with a hash of their contents.
type scribbled struct{ Durable, Last map[string]uint64 }

// TestFaults checks the file layer of the crash test: a loss of all unsynced changes leaves exactly what was synced, and
// a loss of none leaves everything.
func TestFaults(t *testing.T) {
	root := t.TempDir()
	bin := compileFaults(t, root)
	if bin == "" {
		t.Skip("this kernel does not allow to intercept system calls")
	}
	for seed := range uint64(8) {
		for keep := range 2 {
			dir := filepath.Join(root, fmt.Sprint(seed, "-", keep))
			tree, side, journal := filepath.Join(dir, "tree"), filepath.Join(dir, "side"), filepath.Join(dir, "journal")
			if err := os.MkdirAll(tree, 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(bin, os.Args[0], "-test.run=^TestScribble$")
			cmd.Env = append(os.Environ(), "FAULTS_DIR="+tree, "FAULTS_JOURNAL="+journal, "FAULTS_SIDE="+side, "FAULTS_STRICT=1",
				"SCRIBBLE="+tree, fmt.Sprint("SCRIBBLE_SEED=", seed))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var left scribbled
			if err := json.NewDecoder(bytes.NewReader(out)).Decode(&left); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			l := &loss{rng: rand.New(rand.NewPCG(seed, 5)), tree: tree, side: side, strict: true, keep: float64(keep)}
			if err := l.apply(journal); err != nil {
				t.Fatal(err)
			}
			want := left.Durable
			if keep == 1 {
				want = left.Last
			}
			got := map[string]uint64{}
			for _, e := range try(os.ReadDir(tree)).or(t) {
				got[e.Name()] = sumOf(try(os.ReadFile(filepath.Join(tree, e.Name()))).or(t))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("seed %d, keep %d (%v): left are %v, not %v", seed, keep, l.lost, got, want)
			}
		}
	}
}

// sumOf hashes without a seed, so that different processes can compare hashes.
func sumOf(b []byte) uint64 {
	h := uint64(len(b))
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// TestScribble is the program that TestFaults runs: it changes files at random and syncs some of them.
func TestScribble(t *testing.T) {
	dir := os.Getenv("SCRIBBLE")
	if dir == "" {
		t.Skip("for TestFaults")
	}
	seed, err := strconv.ParseUint(os.Getenv("SCRIBBLE_SEED"), 10, 64)
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	check(err)
	type file struct{ last, durable []byte }
	rng := rand.New(rand.NewPCG(seed, 6))
	names, durable := map[string]*file{}, map[string]*file{}
	for range 300 {
		name := fmt.Sprint("f", rng.IntN(5))
		path := filepath.Join(dir, name)
		f := names[name]
		switch n := rng.IntN(20); {
		case n < 3 || f == nil:
			h, err := os.Create(path)
			check(err)
			h.Close()
			if f == nil {
				names[name] = &file{}
			} else {
				f.last = nil
			}
		case n < 11:
			h, err := os.OpenFile(path, os.O_RDWR, 0)
			check(err)
			off := rng.IntN(20000)
			data := make([]byte, 1+rng.IntN(5000))
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			if rng.IntN(3) == 0 {
				off = len(f.last)
				h.Close()
				h, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
				check(err)
				_, err = h.Write(data)
			} else {
				_, err = h.WriteAt(data, int64(off))
			}
			check(err)
			h.Close()
			f.last = append([]byte{}, f.last...)
			if grown := off + len(data) - len(f.last); grown > 0 {
				f.last = append(f.last, make([]byte, grown)...)
			}
			copy(f.last[off:], data)
		case n < 12:
			size := rng.IntN(20000)
			check(os.Truncate(path, int64(size)))
			f.last = append(append([]byte{}, f.last...), make([]byte, 20000)...)[:size]
		case n < 15:
			h, err := os.Open(path)
			check(err)
			check(h.Sync())
			h.Close()
			f.durable = f.last
		case n < 16:
			h, err := os.Open(dir)
			check(err)
			check(h.Sync())
			h.Close()
			clear(durable)
			for k, v := range names {
				durable[k] = v
			}
		case n < 18:
			to := fmt.Sprint("f", rng.IntN(5))
			check(os.Rename(path, filepath.Join(dir, to)))
			delete(names, name)
			names[to] = f
		default:
			check(os.Remove(path))
			delete(names, name)
		}
	}
	left := scribbled{map[string]uint64{}, map[string]uint64{}}
	for k, f := range durable {
		left.Durable[k] = sumOf(f.durable)
	}
	for k, f := range names {
		left.Last[k] = sumOf(f.last)
	}
	check(json.NewEncoder(os.Stdout).Encode(left))
	os.Exit(0)
}
