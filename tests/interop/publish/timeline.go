package main

import (
	"bufio"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// timeline has the readiness and some metrics of a publisher, once a second.
type timeline struct {
	began  time.Time
	zero   time.Time // start of the outage
	ended  chan struct{}
	done   chan struct{}
	ready  []point
	series map[string][]point
}

type point struct {
	at   time.Time
	text string
}

func (s *side) watchTimeline() *timeline {
	t := &timeline{began: time.Now(), ended: make(chan struct{}), done: make(chan struct{}), series: map[string][]point{}}
	t.zero = t.began
	go func() {
		defer close(t.done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			code, body := s.ready()
			if first, _, more := strings.Cut(body, "\n"); more {
				body = first + " …"
			}
			t.ready = add(t.ready, fmt.Sprint(code, " ", body))
			for name, value := range s.scrape() {
				t.series[name] = add(t.series[name], value)
			}
			select {
			case <-t.ended:
				return
			case <-tick.C:
			}
		}
	}()
	return t
}

// mark sets the start of the outage.
func (t *timeline) mark() { t.zero = time.Now() }

func (t *timeline) stop() {
	close(t.ended)
	<-t.done
}

// add keeps only values that have changed.
func add(to []point, text string) []point {
	if n := len(to); n > 0 && to[n-1].text == text {
		return to
	}
	return append(to, point{time.Now(), text})
}

// scrape reads the metrics that may show an outage.
func (s *side) scrape() map[string]string {
	r, err := s.http.Get("http://" + s.metrics + "/metrics")
	if err != nil {
		return nil
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil
	}
	telling := regexp.MustCompile(*tell)
	all := map[string]string{}
	scan := bufio.NewScanner(r.Body)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		line := scan.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		name, value := line[:at], line[at+1:]
		metric, _, _ := strings.Cut(name, "{")
		noise := strings.HasPrefix(metric, "go_") || strings.HasPrefix(metric, "process_") || strings.HasSuffix(metric, "_bucket")
		if noise || !telling.MatchString(metric) {
			continue
		}
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			value = strconv.FormatFloat(f, 'g', 4, 64)
		}
		all[strings.TrimPrefix(name, "cilium_clustermesh_apiserver_")] = value
	}
	return all
}

func (t *timeline) line(points []point) string {
	const shown = 9
	var all []string
	for i, p := range points {
		if len(points) > shown && i >= shown/2 && i < len(points)-shown/2 {
			if i == shown/2 {
				all = append(all, fmt.Sprintf("… %d more …", len(points)-shown+1))
			}
			continue
		}
		all = append(all, fmt.Sprintf("%+.0fs %s", p.at.Sub(t.zero).Seconds(), p.text))
	}
	return strings.Join(all, " | ")
}

// print shows readiness and every series that changed, in seconds since the outage began.
func (t *timeline) print() {
	fmt.Println("  readyz: " + t.line(t.ready))
	if len(t.series) == 0 {
		fmt.Println("  no metrics")
	}
	for _, name := range slices.Sorted(maps.Keys(t.series)) {
		if points := t.series[name]; len(points) > 1 {
			fmt.Println("  " + name + ": " + t.line(points))
		}
	}
}
