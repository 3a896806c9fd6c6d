//go:build tools

// Package kubernetes pins the API server that the tests start.
package kubernetes

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
