package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// h2 is an HTTP/2 connection that obeys no rule of its own: the attacks write the frames.
type h2 struct {
	net.Conn
	out *bufio.Writer
	fr  *http2.Framer
	enc *hpack.Encoder
	hdr bytes.Buffer

	write sync.Mutex // guards out, fr, enc, hdr, last and flips
	last  uint32     // the last stream that was opened
	flips uint32     // changes of the initial window

	mu      sync.Mutex
	change  *sync.Cond
	window  int64            // what the server lets this connection send
	initial int64            // the window of a new stream
	streams map[uint32]int64 // windows of streams, where they differ from `initial`
	err     error            // why the connection ended

	// on is called with each frame that is read.
	on func(http2.Frame)
}

// h2options are the ways of a connection.
type h2options struct {
	settings []http2.Setting
	// deaf reads nothing, ever.
	deaf bool
	// stingy sends no window updates.
	stingy bool
	// headers decodes headers, for `on`.
	headers bool
	on      func(http2.Frame)
}

// dialH2 connects as the user and sends the preface.
func dialH2(ctx context.Context, address, certs, common string, o h2options) (*h2, error) {
	var dialer interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	}
	plain := &net.Dialer{Timeout: 5 * time.Second}
	dialer = plain
	if certs != "" {
		config, err := clientTLS(certs, common, "h2")
		if err != nil {
			return nil, err
		}
		dialer = &tls.Dialer{NetDialer: plain, Config: config}
	}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &h2{Conn: conn, out: bufio.NewWriterSize(conn, 1<<16), window: 65535, initial: 65535, streams: map[uint32]int64{}, on: o.on}
	c.change = sync.NewCond(&c.mu)
	c.fr = http2.NewFramer(c.out, bufio.NewReaderSize(conn, 1<<16))
	// The framer decodes headers only where it refuses illegal frames.
	c.fr.AllowIllegalReads, c.fr.AllowIllegalWrites = !o.headers, true
	c.fr.SetReuseFrames()
	if o.headers {
		c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	}
	c.enc = hpack.NewEncoder(&c.hdr)
	context.AfterFunc(ctx, func() { conn.Close() })
	err = c.do(func() error {
		if _, err := io.WriteString(c.out, http2.ClientPreface); err != nil {
			return err
		}
		if err := c.fr.WriteSettings(o.settings...); err != nil {
			return err
		}
		if o.stingy {
			return nil
		}
		return c.fr.WriteWindowUpdate(0, 1<<30)
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	if !o.deaf {
		go c.read(o)
	}
	return c, nil
}

// do writes frames and flushes them. A server that does not read for ten seconds ends the connection.
func (c *h2) do(write func() error) error {
	c.write.Lock()
	defer c.write.Unlock()
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := write(); err != nil {
		return err
	}
	return c.out.Flush()
}

func (c *h2) read(o h2options) {
	for {
		frame, err := c.fr.ReadFrame()
		var stream http2.StreamError
		if errors.As(err, &stream) {
			continue
		}
		if err == nil {
			err = c.answer(frame, o)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// answer does what keeps the connection alive.
func (c *h2) answer(frame http2.Frame, o h2options) (err error) {
	if c.on != nil {
		c.on(frame)
	}
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
			c.mu.Lock()
			for id := range c.streams {
				c.streams[id] += int64(size) - c.initial
			}
			c.initial = int64(size)
			c.mu.Unlock()
			c.change.Broadcast()
		}
		return c.do(c.fr.WriteSettingsAck)
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			return c.do(func() error { return c.fr.WritePing(true, data) })
		}
	case *http2.WindowUpdateFrame:
		c.mu.Lock()
		if f.StreamID == 0 {
			c.window += int64(f.Increment)
		} else {
			c.streams[f.StreamID] = c.windowOf(f.StreamID) + int64(f.Increment)
		}
		c.mu.Unlock()
		c.change.Broadcast()
	case *http2.DataFrame:
		if n := uint32(len(f.Data())); n > 0 && !o.stingy {
			id, ended := f.StreamID, f.StreamEnded()
			return c.do(func() error {
				if !ended {
					if err := c.fr.WriteWindowUpdate(id, n); err != nil {
						return err
					}
				}
				return c.fr.WriteWindowUpdate(0, n)
			})
		}
	case *http2.GoAwayFrame:
		return errors.New("goaway " + f.ErrCode.String() + " " + string(f.DebugData()))
	}
	return nil
}

func (c *h2) windowOf(id uint32) int64 {
	if w, ok := c.streams[id]; ok {
		return w
	}
	return c.initial
}

func (c *h2) end(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.change.Broadcast()
	c.Close()
}

// ended is why the connection has ended, or nil.
func (c *h2) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// open writes the headers of a gRPC call into the buffer. It is called within do.
func (c *h2) open(path, authority string, endStream bool, more ...hpack.HeaderField) (uint32, error) {
	return c.headers(endStream, append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: path},
		{Name: ":authority", Value: authority}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...))
}

// get asks for a page.
func (c *h2) get(path string) error {
	return c.do(func() error {
		_, err := c.headers(true, []hpack.HeaderField{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: path},
			{Name: ":authority", Value: "127.0.0.1"},
		})
		return err
	})
}

// headers opens a stream with these fields.
func (c *h2) headers(endStream bool, fields []hpack.HeaderField) (uint32, error) {
	if c.last == 0 {
		c.last = 1
	} else {
		c.last += 2
	}
	c.hdr.Reset()
	for _, f := range fields {
		if err := c.enc.WriteField(f); err != nil {
			return 0, err
		}
	}
	const frame = 16 << 10
	block := c.hdr.Bytes()
	first := block[:min(frame, len(block))]
	block = block[len(first):]
	err := c.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: c.last, BlockFragment: first, EndStream: endStream, EndHeaders: len(block) == 0,
	})
	for err == nil && len(block) > 0 {
		next := block[:min(frame, len(block))]
		block = block[len(next):]
		err = c.fr.WriteContinuation(c.last, len(block) == 0, next)
	}
	return c.last, err
}

// call opens a stream and sends one message as far as the windows allow at once.
func (c *h2) call(path string, message []byte, end bool) (id uint32, err error) {
	err = c.do(func() error {
		if id, err = c.open(path, "127.0.0.1", false); err != nil {
			return err
		}
		if len(message) > 16<<10 {
			return nil
		}
		return c.fr.WriteData(id, end, framed(message))
	})
	if err == nil && len(message) > 16<<10 {
		err = c.send(id, framed(message), end)
	}
	return id, err
}

// send sends data on a stream and obeys the server's windows. It waits for windows at most two seconds.
func (c *h2) send(id uint32, data []byte, end bool) error {
	limit := time.Now().Add(2 * time.Second)
	timer := time.AfterFunc(2*time.Second, c.change.Broadcast)
	defer timer.Stop()
	for len(data) > 0 {
		c.mu.Lock()
		for c.err == nil && min(c.window, c.windowOf(id)) <= 0 {
			if time.Now().After(limit) {
				c.mu.Unlock()
				return errNoWindow
			}
			c.change.Wait()
		}
		if c.err != nil {
			defer c.mu.Unlock()
			return c.err
		}
		n := min(c.window, c.windowOf(id), 16<<10, int64(len(data)))
		c.window -= n
		c.streams[id] = c.windowOf(id) - n
		c.mu.Unlock()
		last := end && int(n) == len(data)
		if err := c.do(func() error { return c.fr.WriteData(id, last, data[:n]) }); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

var errNoWindow = errors.New("the server gives no window")

// framed is a gRPC message with its prefix.
func framed(message []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	return append(b, message...)
}

// message encodes a request of etcd's API.
func message(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// The paths of etcd's API.
const (
	pathRange       = "/etcdserverpb.KV/Range"
	pathRangeStream = "/etcdserverpb.KV/RangeStream"
	pathPut         = "/etcdserverpb.KV/Put"
	pathTxn         = "/etcdserverpb.KV/Txn"
	pathWatch       = "/etcdserverpb.Watch/Watch"
	pathGrant       = "/etcdserverpb.Lease/LeaseGrant"
	pathKeepAlive   = "/etcdserverpb.Lease/LeaseKeepAlive"
	pathLogin       = "/etcdserverpb.Auth/Authenticate"
	pathLeader      = "/v3electionpb.Election/Leader"
	pathObserve     = "/v3electionpb.Election/Observe"
	pathCampaign    = "/v3electionpb.Election/Campaign"
	pathHealth      = "/grpc.health.v1.Health/Watch"
)
