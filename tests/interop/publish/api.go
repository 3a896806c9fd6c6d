package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// api is the Kubernetes API of one side: lists and watches of everything in the store. Selectors are ignored, because
// every object here matches those that publishers use.
type api struct {
	store *store
	side  int
	// A server without the feature WatchList rejects streaming lists.
	streaming bool
	// Numbers of requested lists, streaming lists and watches.
	lists, streams, watches, gone atomic.Int64
}

const bookmarkEvery = time.Minute

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	switch path {
	case "/version":
		answer(w, dict{"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64", "goVersion": "go1.26"})
		return
	case "/readyz", "/livez", "/healthz":
		_, _ = w.Write([]byte("ok"))
		return
	case "/api":
		answer(w, dict{"kind": "APIVersions", "versions": []string{"v1"}})
		return
	case "/apis":
		answer(w, groupList())
		return
	}
	if a.store.collections[path] == nil {
		a.object(w, r, path)
		return
	}
	q := r.URL.Query()
	if q.Get("watch") != "true" && q.Get("watch") != "1" {
		a.list(w, r, path)
		return
	}
	if q.Get("sendInitialEvents") == "true" && !a.streaming {
		refuse(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	}
	a.watch(w, r, path)
}

type dict = map[string]any

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status(code, reason, message))
}

func status(code int, reason, message string) dict {
	return dict{"kind": "Status", "apiVersion": "v1", "metadata": dict{}, "status": "Failure",
		"message": message, "reason": reason, "code": code}
}

// object answers a request for one object, or for the resources of a group.
func (a *api) object(w http.ResponseWriter, r *http.Request, path string) {
	if strings.Count(path, "/") < 4 && !strings.HasPrefix(path, "/api/v1/") {
		if list := resourceList(path); list != nil {
			answer(w, list)
			return
		}
	}
	at := strings.LastIndexByte(path, '/')
	if at > 0 && a.store.collections[path[:at]] != nil {
		if json, there := a.store.get(path[:at], path[at+1:]); there {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(shown(json, metadataOnly(r)))
			return
		}
	}
	refuse(w, http.StatusNotFound, "NotFound", path+" not found")
}

func groupList() dict {
	var groups []dict
	seen := map[string]bool{}
	for _, k := range kinds {
		group, version, grouped := strings.Cut(k.apiVersion, "/")
		if !grouped || seen[k.apiVersion] {
			continue
		}
		seen[k.apiVersion] = true
		v := dict{"groupVersion": k.apiVersion, "version": version}
		groups = append(groups, dict{"name": group, "versions": []dict{v}, "preferredVersion": v})
	}
	return dict{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
}

func resourceList(path string) dict {
	var resources []dict
	for _, k := range kinds {
		if at := strings.LastIndexByte(k.path, '/'); k.path[:at] == path {
			namespaced := k == services || k == slicesOfKube || k == endpoints
			resources = append(resources, dict{"name": k.path[at+1:], "kind": k.name, "namespaced": namespaced,
				"verbs": []string{"get", "list", "watch"}})
		}
	}
	if resources == nil {
		return nil
	}
	group := strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
	return dict{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
}

// === lists ===

func (a *api) list(w http.ResponseWriter, r *http.Request, path string) {
	a.lists.Add(1)
	q := r.URL.Query()
	limit, _ := strconv.Atoi(q.Get("limit"))
	after, first := "", int64(0)
	if token := q.Get("continue"); token != "" {
		text, err := base64.RawURLEncoding.DecodeString(token)
		version, name, ok := strings.Cut(string(text), " ")
		if err != nil || !ok {
			refuse(w, http.StatusBadRequest, "BadRequest", "continue key is not valid")
			return
		}
		after = name
		first, _ = strconv.ParseInt(version, 10, 64)
	}
	items, last, left, version := a.store.page(path, after, limit)
	if first != 0 {
		// In Kubernetes all pages are of one version. Here later pages may be newer; the watch then repeats their changes.
		version = first
	}
	meta := fmt.Sprintf(`{"resourceVersion":"%d"`, version)
	if last != "" {
		token := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", version, last))
		meta += fmt.Sprintf(`,"continue":%q,"remainingItemCount":%d`, token, left)
	}
	of, partial := a.store.collections[path].kind, metadataOnly(r)
	if partial {
		of = kind{apiVersion: "meta.k8s.io/v1", name: "PartialObjectMetadata"}
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":%s},"items":[`, of.name, of.apiVersion, meta)
	for i, item := range items {
		if i > 0 {
			_, _ = w.Write([]byte{','})
		}
		_, _ = w.Write(shown(item, partial))
	}
	_, _ = w.Write([]byte("]}\n"))
}

func metadataOnly(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

// shown renders the object, or only its metadata.
func shown(object []byte, partial bool) []byte {
	if !partial {
		return object
	}
	var o struct {
		Metadata json.RawMessage `json:"metadata"`
	}
	_ = json.Unmarshal(object, &o)
	return fmt.Appendf(nil, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":%s}`, o.Metadata)
}

// === watches ===

func (a *api) watch(w http.ResponseWriter, r *http.Request, path string) {
	a.watches.Add(1)
	q := r.URL.Query()
	seconds, _ := strconv.Atoi(q.Get("timeoutSeconds"))
	if seconds == 0 {
		seconds = 1800
	}
	from, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	stream := &frames{w: w, partial: metadataOnly(r), kind: a.store.collections[path].kind, side: a.side}
	w.Header().Set("Content-Type", "application/json")
	initial := q.Get("sendInitialEvents") == "true"
	if initial || from == 0 {
		var items [][]byte
		items, _, _, from = a.store.page(path, "", 0)
		for _, item := range items {
			stream.send("ADDED", item)
		}
		if initial {
			a.streams.Add(1)
			stream.bookmark(from, true)
		}
	}
	stream.flush()
	end := time.After(time.Duration(seconds) * time.Second)
	bookmarks := time.NewTicker(bookmarkEvery)
	defer bookmarks.Stop()
	for {
		events, changed, now, known := a.store.since(path, from)
		if !known {
			a.gone.Add(1)
			text, _ := json.Marshal(status(http.StatusGone, "Expired", "too old resource version"))
			stream.send("ERROR", text)
			return
		}
		for _, e := range events {
			e.change.sent[a.side].CompareAndSwap(0, time.Now().UnixNano())
			stream.send(e.action, e.json)
			from = e.version
		}
		stream.flush()
		select {
		case <-changed:
		case <-bookmarks.C:
			if q.Get("allowWatchBookmarks") == "true" {
				stream.bookmark(now, false)
				from = now
			}
		case <-end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// frames writes the events of a watch.
type frames struct {
	w       http.ResponseWriter
	kind    kind
	partial bool
	side    int
}

func (f *frames) send(action string, object []byte) {
	fmt.Fprintf(f.w, `{"type":%q,"object":`, action)
	_, _ = f.w.Write(shown(object, f.partial && action != "ERROR"))
	_, _ = f.w.Write([]byte("}\n"))
}

func (f *frames) bookmark(version int64, initialEnd bool) {
	annotations := ""
	if initialEnd {
		annotations = `,"annotations":{"k8s.io/initial-events-end":"true"}`
	}
	f.send("BOOKMARK", fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d","creationTimestamp":null%s}}`,
		f.kind.name, f.kind.apiVersion, version, annotations))
}

func (f *frames) flush() {
	if flusher, ok := f.w.(http.Flusher); ok {
		flusher.Flush()
	}
}
