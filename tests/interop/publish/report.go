package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"isthmus.dev/interop/peer"
)

func pick[T any, V cmp.Ordered](of []T, f func(T) V) V {
	var all []V
	for _, v := range of {
		all = append(all, f(v))
	}
	return peer.Median(all)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

func inMiB(n int64) string { return fmt.Sprintf("%.1f", float64(n)/(1<<20)) }

func (d difference) String() string {
	if d.none() {
		return "none"
	}
	return fmt.Sprintf("%d missing, %d stale, %d wrong", d.missing, d.stale, d.wrong)
}

func (s seen) String() string {
	return fmt.Sprintf("%d new, %d same, %d deleted; %d elsewhere", s.puts, s.same, len(s.gone), s.others)
}

// row prints one figure of all sides, with the ratio if the figure is a number.
type row struct {
	title  string
	number func(*figures) (float64, bool)
	text   func(*figures) string
}

func number[T any](title string, of func(*figures) []T, f func(T) float64, shown string) row {
	return row{
		title:  title,
		number: func(g *figures) (float64, bool) { return pick(orNone(of(g)), f), len(of(g)) > 0 },
		text:   func(g *figures) string { return fmt.Sprintf(shown, pick(orNone(of(g)), f)) },
	}
}

func orNone[T any](of []T) []T {
	if len(of) == 0 {
		return make([]T, 1)
	}
	return of
}

func startRows(title string, of func(*figures) []started) []row {
	return []row{
		number(title+": /readyz after s", of, func(s started) float64 { return s.ready.Seconds() }, "%.3f"),
		number(title+": keys in etcd then", of, func(s started) float64 { return float64(s.keys) }, "%.0f"),
		number(title+": first event after s", of, func(s started) float64 { return s.first.Seconds() }, "%.3f"),
		number(title+": last event after s", of, func(s started) float64 { return s.complete.Seconds() }, "%.3f"),
		number(title+": CPU s until ready", of, func(s started) float64 { return s.cpuReady.Seconds() }, "%.2f"),
		number(title+": etcd's CPU s until ready", of, func(s started) float64 { return s.etcdCPU.Seconds() }, "%.2f"),
		number(title+": CPU s while quiet", of, func(s started) float64 { return s.cpuQuiet.Seconds() }, "%.2f"),
		number(title+": CPU s until quiet", of, func(s started) float64 { return s.cpu.Seconds() }, "%.2f"),
		number(title+": RSS peak MiB", of, func(s started) float64 { return float64(s.peak) / (1 << 20) }, "%.1f"),
		number(title+": load of the machine", of, func(s started) float64 { return s.load }, "%.1f"),
		{title: title + ": events seen", text: func(g *figures) string { return orNone(of(g))[0].seen.String() }},
		{title: title + ": differs", text: func(g *figures) string { return orNone(of(g))[0].differ.String() }},
	}
}

func memoryRow(title string, of func(*figures) []peer.Memory, f func(peer.Memory) int64) row {
	return number(title, of, func(m peer.Memory) float64 { return float64(f(m)) / (1 << 20) }, "%.1f")
}

func report(all []*figures) {
	if len(all) == 0 {
		return
	}
	fmt.Printf("\n%d objects; %s\n", all[0].objects, describe())
	rss := func(m peer.Memory) int64 { return m.RSS }
	anonymous := func(m peer.Memory) int64 { return m.Anonymous }
	rest := func(g *figures) []peer.Memory { return g.rest }
	settled := func(g *figures) []peer.Memory { return g.settled }
	rows := startRows("cold", func(g *figures) []started { return g.cold })
	rows = append(rows,
		memoryRow(fmt.Sprintf("RSS MiB, quiet for %v", *quiet), rest, rss),
		memoryRow("… of it not a file's", rest, anonymous),
		memoryRow("RSS MiB, settled", settled, rss),
		memoryRow("… of it not a file's", settled, anonymous),
		row{title: "asked of the API server", text: func(g *figures) string { return g.asked }},
	)
	if *restarts {
		rows = append(rows, startRows("after kill", func(g *figures) []started { return g.again })...)
		rows = append(rows, memoryRow("after kill: RSS MiB, quiet", func(g *figures) []peer.Memory { return g.restAgain }, rss))
		changed := func(g *figures) []started { return g.changed }
		rows = append(rows, startRows(fmt.Sprintf("%d changes while down", changesWhileDown), changed)...)
		rows = append(rows, row{title: "… events called for", text: func(g *figures) string { return fmt.Sprint(g.expected) }})
	}
	printRows(all, rows)
	reportChurn(all)
	reportOutages(all)
}

func describe() string {
	var all []string
	for text, on := range map[string]bool{
		"CiliumEndpointSlices": *ces, "CiliumEndpoints": !*ces, "streaming lists": *streaming, "pages": !*streaming,
		"HTTP/1.1": *plainHTTP, "HTTPS": !*plainHTTP, "sides at once": *together,
	} {
		if on {
			all = append(all, text)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func printRows(all []*figures, rows []row) {
	header := []string{""}
	for _, g := range all {
		header = append(header, g.name)
	}
	if len(all) == 2 {
		header = append(header, "ratio")
	}
	out := [][]string{header}
	for _, r := range rows {
		line := []string{r.title}
		for _, g := range all {
			line = append(line, r.text(g))
		}
		if r.number != nil && len(all) == 2 {
			a, known := r.number(all[0])
			if b, also := r.number(all[1]); known && also && a != 0 {
				line = append(line, fmt.Sprintf("%.3f", b/a))
			}
		}
		out = append(out, line)
	}
	peer.Table(out)
}

func reportChurn(all []*figures) {
	out := [][]string{{"changes/s", "side", "changes", "p50 ms", "p99 ms", "max ms", "drained s", "never seen", "overtaken", "CPU ms/change", "RSS peak MiB", "differs"}}
	scopes := [][]string{{"changes/s", "side", "of", "keys", "p50 ms", "p99 ms", "max ms"}}
	for _, g := range all {
		for _, c := range g.churned {
			out = append(out, []string{
				fmt.Sprint(c.rate), g.name, fmt.Sprint(c.changes), ms(c.all.p50), ms(c.all.p99), ms(c.all.most), seconds(c.drained),
				fmt.Sprint(c.lost), fmt.Sprint(c.overtaken), ms(c.cpu / time.Duration(max(1, c.changes))), inMiB(c.peak), c.differ.String(),
			})
			for _, scope := range slices.Sorted(maps.Keys(c.scopes)) {
				s := c.scopes[scope]
				scopes = append(scopes, []string{fmt.Sprint(c.rate), g.name, scope, fmt.Sprint(s.count), ms(s.p50), ms(s.p99), ms(s.most)})
			}
		}
	}
	if len(out) > 1 {
		peer.Table(out)
		peer.Table(scopes)
	}
}

func reportOutages(all []*figures) {
	out := [][]string{{"outage", "side", "changes", "keys to change", "events meanwhile", "wrongly deleted", "ready after s", "right after s", "differs"}}
	for _, g := range all {
		for _, d := range g.dark {
			out = append(out, []string{
				d.what, g.name, fmt.Sprint(d.changes), fmt.Sprint(d.pending), d.during.String(), fmt.Sprint(d.wronged),
				seconds(d.ready), seconds(d.back), d.differ.String(),
			})
		}
	}
	if len(out) == 1 {
		return
	}
	peer.Table(out)
	for _, g := range all {
		for _, d := range g.dark {
			fmt.Printf("\n%s, %s, away for %v:\n", g.name, d.what, *away)
			d.timeline.print()
		}
	}
}
