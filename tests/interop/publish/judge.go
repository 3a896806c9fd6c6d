package main

import "fmt"

// judge lists errors of Isthmus. Whether figures are good enough is for the reader to decide.
func judge(all []*figures) (wrong bool) {
	for _, g := range all {
		if g.kind != ours {
			continue
		}
		complain := func(bad bool, format string, args ...any) {
			if bad {
				fmt.Printf("WRONG: "+format+"\n", args...)
				wrong = true
			}
		}
		for title, starts := range map[string][]started{"cold": g.cold, "after kill": g.again, "changed while down": g.changed} {
			for _, s := range starts {
				complain(!s.differ.none(), "%s: %s: %.300s", title, s.differ, s.differ.example)
				complain(s.seen.same > 0, "%s: %d keys written again", title, s.seen.same)
			}
		}
		for _, s := range g.again {
			complain(s.seen.puts+len(s.seen.gone) > 0, "after kill: events, though nothing changed: %s", s.seen)
		}
		for _, c := range g.churned {
			complain(c.lost > 0 || !c.differ.none(), "%d changes/s: %d never seen, %s", c.rate, c.lost, c.differ)
		}
		for _, d := range g.dark {
			events := d.during.puts + d.during.same + len(d.during.gone)
			complain(events > 0, "%s: events meanwhile: %s", d.what, d.during)
			complain(d.wronged > 0, "%s: %d keys deleted that should be there", d.what, d.wronged)
			complain(!d.differ.none(), "%s: %s: %.300s", d.what, d.differ, d.differ.example)
		}
	}
	return wrong
}
