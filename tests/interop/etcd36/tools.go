//go:build tools

// Package etcd36 pins the former release of etcd, which the tests compare with as well.
package etcd36

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/etcdutl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
