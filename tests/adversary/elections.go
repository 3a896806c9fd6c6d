package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// electionRows use the election service, whose calls read and watch ranges on behalf of the client.
var electionRows = []row{
	{
		name: "elections-leader", what: "asks for the leader of a name below which all keys lie, 200 on each of 4 connections",
		full:    true,
		fixture: fixture{big: true},
		attack: func(a *attacker) error {
			a.begin()
			// The leader is the oldest key of the range: a server that sorts pays for all keys.
			a.calls(4, 200, "reader", pathLeader, field(1, []byte("big")))
			return nil
		},
	},
	{
		name: "elections-observe", what: "observes 1,000 names of 4,000 bytes on each of 40 connections",
		full: true,
		attack: func(a *attacker) error {
			a.begin()
			long := bytes.Repeat([]byte("n"), 4000)
			return a.hoardOn(40, "reader", 1000, func(c *h2, i int) error {
				_, err := c.call(pathObserve, field(1, append(fmt.Appendf(nil, "big/%d/", i), long...)), true)
				return err
			})
		},
	},
	{
		name: "elections-candidates", what: "8,000 candidates of one name, who all go away at once",
		full:    true,
		seconds: [2]float64{12, 15},
		attack:  candidates,
	},
}

// candidates queue behind each other. Where each that goes away wakes all others, the end costs their square.
func candidates(a *attacker) error {
	request := append(field(1, []byte("w/race")), field(3, []byte("v"))...)
	a.begin()
	var (
		mu    sync.Mutex
		conns []*h2
		next  int
	)
	a.workers(8, func() bool {
		mu.Lock()
		next++
		last := next > 8
		mu.Unlock()
		if last {
			return false
		}
		c, err := a.h2("writer", h2options{})
		if err != nil {
			a.count("× "+short(err), 1)
			return true
		}
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		for range 1000 {
			if _, err := c.call(pathCampaign, request, true); err != nil {
				a.count("× "+short(err), 1)
				break
			}
			a.count("candidates", 1)
		}
		return true
	})
	a.rest(6 * time.Second)
	for _, c := range conns {
		c.Close()
	}
	return nil
}

// field encodes one field of a message. The election API has no Go package without the whole of etcd.
func field(number byte, value []byte) []byte {
	return append(binary.AppendUvarint([]byte{number<<3 | 2}, uint64(len(value))), value...)
}
