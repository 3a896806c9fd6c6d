//go:build tools

// Package helm pins the tools that render deploy/: Helm and kustomize.
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
	_ "sigs.k8s.io/kustomize/kustomize/v5"
)
