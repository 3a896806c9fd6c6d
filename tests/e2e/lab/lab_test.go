// What a lab promises: machines with namespaces of their own that reach each other, and nothing left at the end.
package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		os.Exit(0) // needs root, see README.md
	}
	Enter(filepath.Join(os.TempDir(), "isthmus-lab-logs"))
	os.Exit(m.Run())
}

func TestMachinesOfTwoRegionsReachEachOther(t *testing.T) {
	logs := t.TempDir()
	var machines []*Machine
	for i, region := range []string{"a", "b"} {
		net := []string{"10.13", "10.14"}[i]
		if err := Region(region, net+".0.1/16"); err != nil {
			t.Fatal(err)
		}
		m, err := NewMachine("m-"+region, region, net+".1.1/16", net+".0.1", logs)
		if err != nil {
			t.Fatal(err)
		}
		machines = append(machines, m)
	}
	a := machines[0]
	out, err := a.Command("uname", "-n").Output()
	if err != nil || strings.TrimSpace(string(out)) != "m-a" {
		t.Errorf("the host name is %q: %v", out, err)
	}
	if out, err := a.Command("bash", "-c", "exec 3<>/dev/tcp/10.14.1.1/9").CombinedOutput(); !strings.Contains(string(out), "refused") {
		t.Errorf("a closed port of the other machine answers %q: %v", out, err)
	}
	if err := a.Start("sleep", "sleep", "600"); err != nil || !a.Alive("sleep") {
		t.Fatalf("a service does not run: %v", err)
	}
	a.Kill("sleep")
	if _, err := MakeCgroup("m-a"); err != nil {
		t.Error(err)
	}
}
