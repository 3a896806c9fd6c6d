package monitoring

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
)

const dashboards = "../../deploy/monitoring/dashboards"

// A rate over a fixed range shows nothing where Prometheus scrapes less often. A range of hours or days is a figure of its own.
var fixedRange = regexp.MustCompile(`\[[0-9]+[sm]\]`)

// The dashboards are documents of Grafana's own schema: its generated types know every field, and refuse unknown ones.
func TestDashboardsAreDocumentsOfGrafanasSchema(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	for name, raw := range documents(t) {
		t.Run(name, func(t *testing.T) {
			var document dashboard.Dashboard
			for _, problem := range problems(document.UnmarshalJSONStrict(raw)) {
				t.Error(problem)
			}
			// The strict reader leaves panels out.
			document = dashboard.Dashboard{}
			if err := json.Unmarshal(raw, &document); err != nil {
				t.Fatal(err)
			}
			for _, problem := range problems(document.Validate()) {
				t.Error(problem)
			}
			lint(t, document)
		})
	}
}

// A dashboard with a field that Grafana does not know is refused: the test above can fail.
func TestGrafanasSchemaRefusesUnknownFields(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	for name, raw := range documents(t) {
		var document map[string]any
		if err := json.Unmarshal(raw, &document); err != nil {
			t.Fatal(err)
		}
		for _, panel := range document["panels"].([]any) {
			panel.(map[string]any)["gridPosition"] = map[string]int{"x": 0}
		}
		wrong, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		if len(problems((&dashboard.Dashboard{}).UnmarshalJSONStrict(wrong))) == 0 {
			t.Errorf("%s with an unknown field of its panels is a document of the schema", name)
		}
	}
}

// The errors in an error of the generated types, which may be an empty list.
func problems(err error) []error {
	var list cog.BuildErrors
	if err == nil || !errors.As(err, &list) {
		return slices.DeleteFunc([]error{err}, func(err error) bool { return err == nil })
	}
	var all []error
	for _, one := range list {
		all = append(all, one)
	}
	return all
}

func documents(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(dashboards + "/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no dashboards", err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(file)] = raw
	}
	return all
}

// The rules of Grafana's dashboard linter that a schema cannot say.
func lint(t *testing.T, document dashboard.Dashboard) {
	t.Helper()
	if document.Uid == nil || document.Title == nil || document.Description == nil {
		t.Error("a dashboard has a uid, a title and a description")
	}
	ids, cells := map[uint32]string{}, map[[2]uint32]string{}
	for _, entry := range document.Panels {
		if entry.RowPanel != nil {
			cell(t, ids, cells, entry.RowPanel.Id, *entry.RowPanel.Title, entry.RowPanel.GridPos)
			continue
		}
		panel := entry.Panel
		title := *panel.Title
		if panel.Id == nil {
			t.Fatalf("%s: no id", title)
		}
		cell(t, ids, cells, *panel.Id, title, panel.GridPos)
		if title == "" || panel.Description == nil || *panel.Description == "" {
			t.Errorf("panel %d has no title or no description", *panel.Id)
		}
		if panel.FieldConfig == nil || panel.FieldConfig.Defaults.Unit == nil {
			t.Errorf("%s: no unit", title)
		}
		if len(panel.Targets) == 0 {
			t.Errorf("%s: no expression", title)
		}
		refs := map[string]bool{}
		for _, target := range panel.Targets {
			query, isPrometheus := target.(*prometheus.Dataquery)
			if !isPrometheus {
				if value, ok := target.(prometheus.Dataquery); ok {
					query, isPrometheus = &value, true
				}
			}
			if !isPrometheus {
				t.Fatalf("%s: %T is no query of Prometheus", title, target)
			}
			if query.RefId == nil || refs[*query.RefId] {
				t.Fatalf("%s: an expression has no name of its own", title)
			}
			refs[*query.RefId] = true
			if query.Datasource == nil || query.Datasource.Uid == nil || *query.Datasource.Uid != "${datasource}" {
				t.Errorf("%s: the data source is not that of the variable", title)
			}
			if !strings.Contains(query.Expr, `namespace=~"$namespace"`) {
				t.Errorf("%s: %s does not heed the namespace", title, query.Expr)
			}
			if panel.Type == "timeseries" && fixedRange.MatchString(query.Expr) {
				t.Errorf("%s: %s has a fixed range: use $__rate_interval", title, query.Expr)
			}
		}
	}
}

// Notes the cells that a panel takes, and fails if another panel is there.
func cell(t *testing.T, ids map[uint32]string, cells map[[2]uint32]string, id uint32, title string, at *dashboard.GridPos) {
	t.Helper()
	if other, taken := ids[id]; taken {
		t.Errorf("%s and %s have the id %d", title, other, id)
	}
	ids[id] = title
	if at == nil || at.X+at.W > 24 {
		t.Fatalf("%s is not on the grid of 24 columns", title)
	}
	for x := at.X; x < at.X+at.W; x++ {
		for y := at.Y; y < at.Y+at.H; y++ {
			if other, taken := cells[[2]uint32{x, y}]; taken {
				t.Fatalf("%s covers %s", title, other)
			}
			cells[[2]uint32{x, y}] = title
		}
	}
}
