//go:build tools

// Package etcd35 pins the oldest release line of etcd that replicas follow, for its upgrade under them.
package etcd35

import (
	_ "go.etcd.io/etcd/server/v3"
)
