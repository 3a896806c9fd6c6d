package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// endless is an etcd whose list never ends: every page is followed by another page.
type endless struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	cluster string
	id      int
	perPage int
	pages   atomic.Int64
	says    int64             // the claimed number of keys; 0: those of the page
	pause   time.Duration     // before each page
	others  map[string]string // keys of other kinds, whose lists end
	server  *grpc.Server
}

// pretend serves an endless etcd. The lists of the kinds in others end.
func pretend(ca *authority, address, cluster string, id, perPage int, others map[string]string) (*endless, error) {
	config, err := ca.tls("server")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	e := &endless{cluster: cluster, id: id, perPage: perPage, others: others, pause: 50 * time.Millisecond, server: grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))}
	pb.RegisterKVServer(e.server, e)
	pb.RegisterWatchServer(e.server, e)
	go func() { _ = e.server.Serve(l) }()
	return e, nil
}

func (e *endless) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 0xdead, MemberId: 1, Revision: 1000, RaftTerm: 1}
}

func (e *endless) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	key := string(r.Key)
	answer := &pb.RangeResponse{Header: e.header()}
	add := func(key, value string) {
		answer.Kvs = append(answer.Kvs, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: 1, ModRevision: 1, Version: 1})
		answer.Count++
	}
	switch {
	case strings.HasPrefix(key, "cilium/.heartbeat"):
		add("cilium/.heartbeat", time.Now().Format(time.RFC3339))
	case strings.HasPrefix(key, "cilium/cluster-config/"):
		add("cilium/cluster-config/"+e.cluster, configOf(e.id, *most))
	case strings.HasPrefix(key, "cilium/synced/"):
		for _, word := range words {
			add(canaryKey(e.cluster, word), "now")
		}
	case strings.HasPrefix(key, ipPrefix):
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(e.pause):
		}
		page := e.pages.Add(1)
		for n := range e.perPage {
			next := fmt.Sprintf("%s10.%d.%012d.%06d", ipPrefix, e.id, page, n)
			add(next, "endless")
		}
		answer.More = true
		answer.Count = max(answer.Count, e.says)
	default:
		for _, other := range slices.Sorted(maps.Keys(e.others)) {
			if other >= key && other < string(r.RangeEnd) {
				add(other, e.others[other])
			}
		}
	}
	return answer, nil
}

// Watch confirms watchers and sends no events.
func (e *endless) Watch(stream pb.Watch_WatchServer) error {
	for id := int64(0); ; id++ {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.GetCreateRequest() == nil {
			continue
		}
		if err := stream.Send(&pb.WatchResponse{Header: e.header(), WatchId: id, Created: true}); err != nil {
			return err
		}
	}
}
