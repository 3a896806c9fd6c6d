// Evaluates etcd's own alerts and dashboards (contrib/mixin of the etcd that tests/interop pins) in a Prometheus that scrapes a
// store of Isthmus. Nothing of the mixin is in this repository: it is read from Go's module cache.
package monitoring

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	jsonnet "github.com/google/go-jsonnet"
)

// What a mixin asks for: the name of the alert or of the panel, and the expression.
type expression struct{ name, text string }

// Stands in for the library of Grafana dashboards, of which only the expressions are needed.
const noGrafana = `{ query: { prometheus: { new(source, expr):: { expr: expr }, withLegendFormat(text):: {} } } }`

type importer struct {
	jsonnet.FileImporter
	stub jsonnet.Contents
}

func (i *importer) Import(from, path string) (jsonnet.Contents, string, error) {
	if filepath.Base(path) == "g.libsonnet" {
		return i.stub, path, nil
	}
	return i.FileImporter.Import(from, path)
}

// The directory of the mixin of the pinned etcd, or that in MIXIN_OF_ETCD.
func mixin(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("MIXIN_OF_ETCD"); dir != "" {
		return dir
	}
	pins, err := os.ReadFile("../interop/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	pin := regexp.MustCompile(`go\.etcd\.io/etcd/server/v3 (v\S+)`).FindSubmatch(pins)
	if pin == nil {
		t.Fatal("tests/interop/go.mod pins no etcd")
	}
	download := exec.Command("go", "mod", "download", "-json", "go.etcd.io/etcd/v3@"+string(pin[1]))
	download.Dir = t.TempDir()
	out, err := download.Output()
	if err != nil {
		// Not every proxy has the module of etcd's repository itself.
		t.Skipf("NOT CHECKED: etcd's mixin cannot be had (%s). Set MIXIN_OF_ETCD to contrib/mixin of a checkout of etcd", out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(module.Dir, "contrib/mixin")
}

// Evaluates jsonnet in the mixin's directory.
func evaluate(t *testing.T, mixin, text string, into any) {
	t.Helper()
	vm := jsonnet.MakeVM()
	vm.Importer(&importer{jsonnet.FileImporter{JPaths: []string{mixin}}, jsonnet.MakeContents(noGrafana)})
	out, err := vm.EvaluateAnonymousSnippet(filepath.Join(mixin, "main.jsonnet"), text)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatal(err)
	}
}

func alerts(t *testing.T, mixin string) (found []expression) {
	t.Helper()
	var groups []struct {
		Rules []struct{ Alert, Expr string }
	}
	evaluate(t, mixin, `((import 'config.libsonnet') + (import 'alerts/alerts.libsonnet')).prometheusAlerts.groups`, &groups)
	for _, group := range groups {
		for _, rule := range group.Rules {
			found = append(found, expression{rule.Alert, rule.Expr})
		}
	}
	return found
}

func panels(t *testing.T, mixin string) (found []expression) {
	t.Helper()
	var targets map[string]struct{ Expr string }
	evaluate(t, mixin, `
		local config = (import 'config.libsonnet')._config;
		(import 'dashboards/targets.libsonnet')({ datasource: { name: 'source' }, cluster: { name: 'cluster' } }, config)`, &targets)
	for name, target := range targets {
		found = append(found, expression{name, target.Expr})
	}
	var old struct {
		Rows []struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
	}
	evaluate(t, mixin, `((import 'config.libsonnet') + { _config+:: { grafana7x: true } }
		+ (import 'dashboards/etcd-grafana7x.libsonnet')).grafanaDashboards['etcd.json']`, &old)
	for _, row := range old.Rows {
		for _, panel := range row.Panels {
			for _, target := range panel.Targets {
				found = append(found, expression{panel.Title, target.Expr})
			}
		}
	}
	for at := range found {
		// Grafana replaces these before it asks Prometheus.
		text := strings.NewReplacer("$cluster", job, "$__rate_interval", "1m").Replace(found[at].text)
		found[at].text = text
	}
	return found
}

// The job of the scrape, which the mixin's selector `.*etcd.*` finds.
const job = "etcd"

// Labels that a scrape or its service discovery adds, and the label of buckets.
var added = []string{"job", "instance", "endpoint", "namespace", "pod", "cluster", "le"}

var (
	selector = regexp.MustCompile(`\b([a-z][a-z0-9_]*)\{([^}]*)\}`)
	matcher  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	grouping = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	sample   = regexp.MustCompile(`(?m)^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+$`)
	pair     = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
)

// The labels, with their values, of each metric of a page.
func read(page string) map[string]map[string][]string {
	metrics := map[string]map[string][]string{}
	for _, found := range sample.FindAllStringSubmatch(page, -1) {
		labels, is := metrics[found[1]]
		if !is {
			labels = map[string][]string{}
			metrics[found[1]] = labels
		}
		for _, pair := range pair.FindAllStringSubmatch(found[2], -1) {
			labels[pair[1]] = append(labels[pair[1]], pair[2])
		}
	}
	return metrics
}

// The metrics that this repository says a store does not have, with the reason in the same line.
func exempt(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../deploy/monitoring/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, is := strings.Cut(string(text), "\n## etcd's own mixin\n")
	if !is {
		t.Fatal("deploy/monitoring/README.md has no section about etcd's mixin")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| .{10,} \\|$").FindAllStringSubmatch(table, -1) {
		names = append(names, row[1])
	}
	if len(names) == 0 {
		t.Fatal("the section about etcd's mixin lists no metric")
	}
	return names
}

func family(name string) string {
	for _, end := range []string{"_bucket", "_sum", "_count"} {
		if base, is := strings.CutSuffix(name, end); is {
			return base
		}
	}
	return name
}

// The metrics of an expression that the store does not have.
func absent(text string, metrics map[string]map[string][]string) (names []string) {
	for _, found := range selector.FindAllStringSubmatch(text, -1) {
		if _, is := metrics[found[1]]; !is && found[1] != "up" {
			names = append(names, family(found[1]))
		}
	}
	return names
}

// A store that has done a bit of everything, and the URL of its metrics.
func store(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("ISTHMUS_BIN")
	if binary == "" {
		t.Fatal("ISTHMUS_BIN is not set: run `make monitoring`")
	}
	base := "http://127.0.0.1:" + freePort(t)
	start(t, exec.Command(binary, "etcd", "--data-dir="+filepath.Join(t.TempDir(), "data"), "--metrics=extensive",
		"--listen-client-urls="+base, "--advertise-client-urls="+base))
	eventually(t, "the store answers", func() error { _, err := get(base + "/health"); return err })
	post(t, base+"/v3/kv/put", `{"key":"YQ==","value":"YQ=="}`)
	post(t, base+"/v3/kv/range", `{"key":"YQ=="}`)
	post(t, base+"/v3/lease/grant", `{"TTL":60}`)
	// A watch that ends, since the panels subtract what has ended from what has begun.
	client := http.Client{Timeout: 500 * time.Millisecond}
	if answer, err := client.Post(base+"/v3/watch", "application/json", strings.NewReader(`{"create_request":{"key":"YQ=="}}`)); err == nil {
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
	}
	return base
}

func TestMixinNamesMetricsAndLabelsThatExist(t *testing.T) {
	mixin := mixin(t)
	page, err := get(store(t) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, exempt := read(page), exempt(t)
	missing := map[string]bool{}
	all := append(alerts(t, mixin), panels(t, mixin)...)
	if len(all) < 40 {
		t.Fatalf("only %d expressions were found in the mixin", len(all))
	}
	for _, expression := range all {
		selectors := selector.FindAllStringSubmatch(expression.text, -1)
		if len(selectors) == 0 {
			t.Errorf("%s names no metric: %s", expression.name, expression.text)
		}
		grouped := map[string]bool{}
		for _, name := range absent(expression.text, metrics) {
			missing[name] = true
		}
		for _, found := range selectors {
			labels, is := metrics[found[1]]
			for label := range labels {
				grouped[label] = true
			}
			for _, match := range matcher.FindAllStringSubmatch(found[2], -1) {
				if !is || slices.Contains(added, match[1]) {
					continue
				}
				values, has := labels[match[1]]
				if !has {
					t.Errorf("%s: %s has no label %s", expression.name, found[1], match[1])
				} else if match[2] == "=" && !slices.Contains(values, match[3]) {
					t.Errorf("%s: no series of %s has %s=%q", expression.name, found[1], match[1], match[3])
				}
			}
		}
		for _, found := range grouping.FindAllStringSubmatch(expression.text, -1) {
			for label := range strings.SplitSeq(found[1], ",") {
				label = strings.TrimSpace(label)
				// `To` is the label of what is absent: the other members.
				if label != "" && label != "To" && !grouped[label] && !slices.Contains(added, label) {
					t.Errorf("%s groups by %s, which no metric of it has", expression.name, label)
				}
			}
		}
	}
	for name := range missing {
		if !slices.Contains(exempt, name) {
			t.Errorf("the store has no %s: add the metric, or a row with the reason to deploy/monitoring/README.md", name)
		}
	}
	for _, name := range exempt {
		if !missing[name] {
			t.Errorf("the row of %s in deploy/monitoring/README.md is void", name)
		}
	}
}

func TestMixinEvaluatesInPrometheus(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Fatal("prometheus is not installed: run `make monitoring`")
	}
	mixin, base := mixin(t), store(t)
	page, err := get(base + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics := read(page)
	prometheus := "http://127.0.0.1:" + freePort(t)
	target, _ := url.Parse(base)
	config := filepath.Join(t.TempDir(), "prometheus.yml")
	scrape := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: %s\n  static_configs: [{targets: [%q]}]\n", job, target.Host)
	if err := os.WriteFile(config, []byte(scrape), 0o600); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(prometheus, "http://")
	start(t, exec.Command("prometheus", "--config.file="+config, "--web.listen-address="+address,
		"--storage.tsdb.path="+filepath.Join(t.TempDir(), "tsdb"), "--log.level=error"))
	// A rate needs two samples, and between them something must happen.
	eventually(t, "Prometheus has samples", func() error {
		post(t, base+"/v3/kv/put", `{"key":"YQ==","value":"Yg=="}`)
		result, err := query(prometheus, fmt.Sprintf("min(count_over_time(etcd_server_has_leader{job=%q}[1m])) >= 5", job))
		if err == nil && len(result) == 0 {
			err = fmt.Errorf("no samples yet")
		}
		return err
	})
	for _, alert := range alerts(t, mixin) {
		switch result, err := query(prometheus, alert.text); {
		case err != nil:
			t.Errorf("%s: %v", alert.name, err)
		case len(result) > 0:
			t.Errorf("%s fires for a store in good health: %s", alert.name, result)
		}
	}
	for _, panel := range panels(t, mixin) {
		switch result, err := query(prometheus, panel.text); {
		case err != nil:
			t.Errorf("%s: %v", panel.name, err)
		case len(result) == 0 && len(absent(panel.text, metrics)) == 0:
			t.Errorf("the panel %s stays empty: %s", panel.name, panel.text)
		}
	}
}

func query(prometheus, text string) ([]json.RawMessage, error) {
	body, err := get(prometheus + "/api/v1/query?query=" + url.QueryEscape(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	var answer struct {
		Data struct{ Result []json.RawMessage }
	}
	err = json.Unmarshal([]byte(body), &answer)
	return answer.Data.Result, err
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

func start(t *testing.T, command *exec.Cmd) {
	t.Helper()
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	var err error
	for range 300 {
		if err = try(); err == nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("waited a minute in vain: %s: %v", what, err)
}

func get(from string) (string, error) {
	answer, err := http.Get(from)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return string(body), err
}

func post(t *testing.T, to, body string) {
	t.Helper()
	answer, err := http.Post(to, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
}
