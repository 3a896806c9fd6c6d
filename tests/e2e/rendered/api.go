package rendered

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"

	"isthmus.dev/e2e/pki"
)

// API is an API server that lists objects and has no changes.
type API struct {
	Address string
	CA      []byte
	server  *http.Server
}

var collections = map[string]string{
	"Namespace": "/api/v1/namespaces", "Service": "/api/v1/services", "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
	"CiliumNode": "/apis/cilium.io/v2/ciliumnodes", "CiliumIdentity": "/apis/cilium.io/v2/ciliumidentities",
	"CiliumEndpoint": "/apis/cilium.io/v2/ciliumendpoints",
}

// Serve serves the objects at an address.
func Serve(address string, objects Objects) (*API, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ca := pki.NewCA("kubernetes", "ecdsa")
	serving := ca.Issue(pki.Request{CommonName: "kube-apiserver", Hosts: []string{host}, Server: true})
	pair, err := tls.X509KeyPair(serving.Cert, serving.Key)
	if err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return nil, err
	}
	a := &API{Address: address, CA: ca.PEM, server: &http.Server{Handler: handler(objects)}}
	go func() { _ = a.server.Serve(listener) }()
	return a, nil
}

// Close ends the server and all its watches.
func (a *API) Close() { _ = a.server.Close() }

func handler(objects Objects) http.Handler {
	items := map[string][]json.RawMessage{}
	for _, object := range objects {
		if path, ok := collections[object.Kind]; ok {
			var fields map[string]any
			_ = json.Unmarshal(object.raw, &fields)
			metadata := fields["metadata"].(map[string]any)
			metadata["resourceVersion"], metadata["uid"] = "5", object.Kind+object.Metadata.Name
			encoded, _ := json.Marshal(fields)
			items[path] = append(items[path], encoded)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("content-type", "application/json")
		query := r.URL.Query()
		switch {
		case r.URL.Path == "/version":
			fmt.Fprint(w, `{"major": "1", "minor": "36", "gitVersion": "v1.36.3"}`)
		case r.URL.Path == "/readyz" || r.URL.Path == "/healthz" || r.URL.Path == "/livez":
			fmt.Fprint(w, "ok")
		case strings.Contains(r.URL.Path, "/customresourcedefinitions/"):
			fmt.Fprint(w, `{"spec": {"versions": [{"name": "v2", "served": true}, {"name": "v2alpha1", "served": true}, {"name": "v1beta1", "served": true}]}}`)
		case query.Get("sendInitialEvents") == "true":
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "code": 422, "reason": "Invalid", "status": "Failure", "message": "sendInitialEvents is forbidden"}`)
		case query.Get("watch") == "true" || query.Get("watch") == "1":
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			found := items[r.URL.Path]
			if found == nil {
				found = []json.RawMessage{}
			}
			_ = json.NewEncoder(w).Encode(map[string]any{
				"kind": "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": "10"}, "items": found,
			})
		}
	})
}
