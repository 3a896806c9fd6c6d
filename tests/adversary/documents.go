package main

import (
	"fmt"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
)

// documentRows are for what the server speaks beside gRPC on the same port: its metrics and the JSON gateway.
var documentRows = []row{
	{
		name: "documents-metrics", what: "1,000 pages of metrics that are not taken, on each of 10 connections of a certificate that is no user",
		full: true,
		attack: func(a *attacker) error {
			a.begin()
			return a.pages(10)
		},
	},
	{
		name: "documents-labels", what: "10,000 client versions, which may become labels, then pages of metrics that are not taken",
		full:    true,
		seconds: [2]float64{6, 8},
		attack: func(a *attacker) error {
			a.versions(10_000)
			a.begin()
			return a.pages(4)
		},
	},
	{
		name: "documents-bodies", what: "400 bodies of 2 MB to the gateway that do not end, on each of 2 connections of a certificate without a name",
		full:    true,
		seconds: [2]float64{6, 8},
		attack: func(a *attacker) error {
			a.begin()
			body := make([]byte, 2_000_000)
			return a.hoardOn(2, "", 400, func(c *h2, _ int) (err error) {
				// The content type is that of gRPC: the path alone must decide what the server keeps of a body.
				var id uint32
				if err = c.do(func() error { id, err = c.open("/v3/kv/range", "127.0.0.1", false); return err }); err != nil {
					return err
				}
				return c.send(id, body, false)
			})
		},
	},
}

// pages asks for pages of metrics and takes nothing of them.
func (a *attacker) pages(connections int) error {
	return a.hoardOn(connections, "nobody", 1000, func(c *h2, _ int) error { return c.get("/metrics") }, noWindows...)
}

// versions names n versions of a client's API, which etcd counts by their names.
func (a *attacker) versions(n int64) {
	auth := pb.NewAuthClient(a.grpc("nobody"))
	var next atomic.Int64
	a.workers(32, func() bool {
		i := next.Add(1) - 1
		if i >= n {
			return false
		}
		ctx := metadata.AppendToOutgoingContext(a.ctx, "client-api-version", fmt.Sprintf("%d.%d", i/100, i%100))
		if _, err := auth.AuthStatus(ctx, &pb.AuthStatusRequest{}); err != nil {
			a.count("× "+short(err), 1)
		} else {
			a.count("versions", 1)
		}
		return true
	})
}
