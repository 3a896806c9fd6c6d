package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Leases that are renewed at whatever endpoint answers, while watchers hop: a lease does not end within its time after a renewal that was
// answered, whoever passed the renewal on, and one that nobody renews ends, everywhere.
const (
	hopTTL = 5 * time.Second
	// A member that has lost the lead and does not know it yet may answer a renewal of which its successor knows nothing.
	hopUnsure = 3 * time.Second
	hopLeased = "leased/"
)

// renewals keeps a lease with a key alive until the round ends, and begins another one where it is lost.
func (h *hops) renewals(rng *rand.Rand, id int) {
	endpoints := h.endpoints()
	some := func() *kept { return endpoints[rng.IntN(len(endpoints))] }
	var lease int64
	// When the last renewal that was answered was sent.
	var renewed time.Time
	for n := 0; !h.stop.Load(); n++ {
		time.Sleep(time.Duration(100+rng.IntN(300)) * time.Millisecond)
		s, sent := some(), time.Now()
		if lease == 0 {
			lease, renewed = h.leased(s, fmt.Sprintf("%s%d/%d/%d", hopLeased, h.round, id, n)), sent
			continue
		}
		ttl, err := renew(s, lease)
		switch {
		case err != nil:
			h.count("renewals failed", 1)
		case ttl > 0:
			renewed = sent
			h.count("renewals", 1)
		default:
			if away := time.Since(renewed); away < hopTTL-hopUnsure {
				h.t.Errorf("%s says that lease %x has ended, %v after it was renewed for %v", s.Name, lease, away, hopTTL)
			}
			h.count("leases ended", 1)
			lease = 0
		}
	}
}

// leased makes a lease with a key; 0 if that fails.
func (h *hops) leased(s *kept, key string) int64 {
	c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	granted, err := pb.NewLeaseClient(connectionTo(s.address)).LeaseGrant(c, &pb.LeaseGrantRequest{TTL: int64(hopTTL.Seconds())})
	if err != nil {
		return 0
	}
	if _, err := pb.NewKVClient(connectionTo(s.address)).Put(c, &pb.PutRequest{Key: []byte(key), Lease: granted.ID}); err != nil {
		return 0
	}
	return granted.ID
}

// renew renews a lease once, and returns the seconds that it has; 0 if it has ended.
func renew(s *kept, lease int64) (int64, error) {
	c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	stream, err := pb.NewLeaseClient(connectionTo(s.address)).LeaseKeepAlive(c)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}); err != nil {
		return 0, err
	}
	r, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	return r.TTL, nil
}

// leasesEnd waits until the keys of all leases are gone at every endpoint: nobody renews them any more.
func (h *hops) leasesEnd() {
	for _, k := range h.endpoints() {
		eventually(h.t, "all leases have ended at "+k.Name, func() bool {
			c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			q := &pb.RangeRequest{Key: []byte(hopLeased), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(hopLeased)), CountOnly: true}
			r, err := pb.NewKVClient(connectionTo(k.address)).Range(c, q)
			return err == nil && r.Count == 0
		})
	}
}
