package interop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// What clients in the field do at the edges of HTTP/2 and gRPC, and etcd serves: odd authorities, bursts of cancelled
// calls, long pipelines on one stream, streams to services that do not exist, large metadata. Each runs against etcd, too,
// so that the expectation is etcd's.

// onBoth runs a test against etcd and against Isthmus.
func onBoth(t *testing.T, test func(*testing.T, *server), args ...string) {
	for _, from := range []func(testing.TB, ...string) *server{theirs, ours} {
		s := from(t, args...)
		t.Run(s.Name, func(t *testing.T) { test(t, s) })
	}
}

// connection is one connection with a watch of the key "watched" on it.
type connection struct {
	conn  *grpc.ClientConn
	watch pb.Watch_WatchClient
}

func connect(t *testing.T, target string, options ...grpc.DialOption) connection {
	t.Helper()
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn := try(grpc.NewClient(target, options...)).or(t)
	t.Cleanup(func() { conn.Close() })
	watch := try(pb.NewWatchClient(conn).Watch(ctx(t))).or(t)
	create := &pb.WatchCreateRequest{Key: []byte("watched")}
	if err := watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		t.Fatal(err)
	}
	if created := try(watch.Recv()).or(t); !created.Created || created.Canceled {
		t.Fatalf("not created: %v", created)
	}
	return connection{conn, watch}
}

// lives checks that calls are answered and that the watch, which no client made anew, still sees changes.
func (c connection) lives(t *testing.T) {
	t.Helper()
	value := fmt.Sprint(time.Now().UnixNano())
	try(pb.NewKVClient(c.conn).Put(ctx(t), &pb.PutRequest{Key: []byte("watched"), Value: []byte(value)})).or(t)
	seen := try(c.watch.Recv()).or(t)
	if len(seen.Events) != 1 || string(seen.Events[0].Kv.Value) != value {
		t.Fatalf("the watch saw %v", seen)
	}
}

// Case A1: clientv3 3.5.0 (etcd#13192), etcdctl 3.4 at a URL, and clients with several endpoints. Case A2: clients of unix
// sockets, among them Python's grpcio (grpc#38142).
func TestAuthorities(t *testing.T) {
	authorities := []string{
		"#initially=[http://127.0.0.1:2379]", "127.0.0.1:2379,127.0.0.1:2380", "http://127.0.0.1:2379",
		"/run/etcd/etcd.sock", "run%2Fetcd%2Fetcd.sock", "%2Frun%2Fetcd.sock", "", "etcd.example:2379", "::1", "a b", "/",
	}
	served := func(t *testing.T, target string) {
		for _, authority := range authorities {
			c := connect(t, target, grpc.WithAuthority(authority))
			kv := pb.NewKVClient(c.conn)
			for range 20 {
				try(kv.Range(ctx(t), &pb.RangeRequest{Key: []byte("a")})).or(t)
			}
			// Other fields push the authority out of the dynamic table of the connection.
			for n := range 20 {
				large := metadata.AppendToOutgoingContext(ctx(t), fmt.Sprint("x-", n), strings.Repeat("x", 900))
				try(kv.Range(large, &pb.RangeRequest{Key: []byte("a")})).or(t)
			}
			large := metadata.AppendToOutgoingContext(ctx(t), "x-claims", strings.Repeat("claim ", 200<<10/6))
			try(kv.Range(large, &pb.RangeRequest{Key: []byte("a")})).or(t)
			c.lives(t)
		}
	}
	onBoth(t, func(t *testing.T, s *server) { served(t, s.address) })
	// etcd takes the host and the port of a unix URL for the name of a file in its working directory.
	socket := "unix://" + t.TempDir() + "/socket"
	ours(t, "--listen-client-urls="+socket)
	t.Run("isthmus over a unix socket", func(t *testing.T) { served(t, socket) })
}

// Case A3 (grpc-rust#1401): a busy client cancels calls all the time.
func TestCancelledCallsDoNotEndTheConnection(t *testing.T) {
	onBoth(t, func(t *testing.T, s *server) {
		for _, n := range []int{25, 1000} {
			for _, pace := range []string{"in turn", "at once"} {
				t.Run(fmt.Sprint(n, " ", pace), func(t *testing.T) {
					c := connect(t, s.address)
					kv := pb.NewKVClient(c.conn)
					cancelled := func() {
						short, cancel := context.WithTimeout(ctx(t), 50*time.Microsecond)
						defer cancel()
						_, err := kv.Range(short, &pb.RangeRequest{Key: []byte("a")})
						if code := status.Code(err); code != codes.OK && code != codes.DeadlineExceeded && code != codes.Canceled {
							t.Errorf("a cancelled call: %v", err)
						}
					}
					var calls sync.WaitGroup
					for range n {
						if pace == "in turn" {
							cancelled()
						} else {
							calls.Go(cancelled)
						}
					}
					calls.Wait()
					c.lives(t)
				})
			}
		}
	})
}

// Case A4 (h2#935): keep-alives and watch creates that a client does not pace.
func TestPipelinesOnOneStream(t *testing.T) {
	onBoth(t, func(t *testing.T, s *server) {
		for _, n := range []int{20_000, 100_000} {
			t.Run(fmt.Sprint(n, " keep-alives"), func(t *testing.T) {
				c := connect(t, s.address)
				lease := pb.NewLeaseClient(c.conn)
				granted := try(lease.LeaseGrant(ctx(t), &pb.LeaseGrantRequest{TTL: 600})).or(t)
				stream := try(lease.LeaseKeepAlive(ctx(t))).or(t)
				pipeline(t, n, func() error {
					return stream.Send(&pb.LeaseKeepAliveRequest{ID: granted.ID})
				}, func() error {
					r, err := stream.Recv()
					if err == nil && r.TTL != 600 {
						err = fmt.Errorf("TTL %d", r.TTL)
					}
					return err
				})
				c.lives(t)
			})
		}
		// Isthmus permits 50,000 watchers on a connection.
		for _, n := range []int{20_000, 40_000} {
			t.Run(fmt.Sprint(n, " watch creates"), func(t *testing.T) {
				c := connect(t, s.address)
				stream := try(pb.NewWatchClient(c.conn).Watch(ctx(t))).or(t)
				sent := 0
				pipeline(t, n, func() error {
					sent++
					create := &pb.WatchCreateRequest{Key: fmt.Appendf(nil, "w/%d", sent)}
					return stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
				}, func() error {
					r, err := stream.Recv()
					if err == nil && (!r.Created || r.Canceled) {
						err = fmt.Errorf("%v", r)
					}
					return err
				})
				c.lives(t)
			})
		}
	})
}

// pipeline sends n requests without waiting for answers, and receives n answers meanwhile.
func pipeline(t *testing.T, n int, send, receive func() error) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		for range n {
			if err := send(); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range n {
		if err := receive(); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// Case A5 (h2#935): a client that speaks a protocol of which the server knows nothing.
func TestAStreamToAnUnknownService(t *testing.T) {
	onBoth(t, func(t *testing.T, s *server) {
		c := connect(t, s.address)
		desc := &grpc.StreamDesc{StreamName: "Get", ClientStreams: true, ServerStreams: true}
		for range 20 {
			stream := try(c.conn.NewStream(ctx(t), desc, "/grpc.Nothing/Get")).or(t)
			for range 100 {
				if err := stream.SendMsg(&pb.PutRequest{Key: []byte("a")}); errors.Is(err, io.EOF) {
					break
				}
			}
			err := stream.RecvMsg(&pb.PutResponse{})
			if status.Code(err) != codes.Unimplemented || status.Convert(err).Message() != "unknown service grpc.Nothing" {
				t.Fatalf("the stream ended with %v", err)
			}
		}
		c.lives(t)
		// grpc-go stops when the answer is there. This client does not.
		for _, n := range []int{100, 20_000} {
			t.Run(fmt.Sprint(n, " messages after the answer"), func(t *testing.T) { deafClient(t, s, n) })
		}
	})
}

// deafClient sends n messages on a stream to an unknown service, whatever the server answers, and reads a key on the same
// connection.
func deafClient(t *testing.T, s *server, n int) {
	c := dialRaw(t, s.address)
	c.open(t, 1, "/grpc.Nothing/Get")
	for range n {
		if !c.send(t, 1, false, []byte("hello")) {
			break
		}
	}
	get := try(proto.Marshal(&pb.RangeRequest{Key: []byte("a")})).or(t)
	c.open(t, 3, "/etcdserverpb.KV/Range")
	c.send(t, 3, true, get)
	var unknown, read bool
	for answer := range c.answers {
		t.Log(answer)
		// tonic encodes the spaces of a message.
		answer = strings.ReplaceAll(answer, "%20", " ")
		unknown = unknown || answer == "1: :status=200 grpc-status=12 grpc-message=unknown service grpc.Nothing"
		read = read || answer == "3: grpc-status=0 grpc-message=" || answer == "3: grpc-status=0"
		if unknown && read {
			return
		}
		if strings.HasPrefix(answer, "GOAWAY") || strings.HasPrefix(answer, "3: RST") {
			t.Fatal("the connection did not live")
		}
	}
	t.Fatal("the connection ended")
}

// rawClient writes frames and reads answers as text. Its calls respect flow control, and nothing else.
type rawClient struct {
	conn    net.Conn
	framer  *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	// answers are headers, resets, and the end of the connection.
	answers chan string
	// credit guards what follows, and is signalled when it changes.
	credit *sync.Cond
	// window is the credit of each stream, and of the connection (0).
	window  map[uint32]int
	initial int
	ended   bool
}

func dialRaw(t *testing.T, address string) *rawClient {
	t.Helper()
	conn := try(net.Dial("tcp", address)).or(t)
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	try(io.WriteString(conn, http2.ClientPreface)).or(t)
	c := &rawClient{
		conn: conn, framer: http2.NewFramer(conn, conn), answers: make(chan string, 100),
		credit: sync.NewCond(&sync.Mutex{}), window: map[uint32]int{0: 65_535}, initial: 65_535,
	}
	c.encoder = hpack.NewEncoder(&c.block)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	// The settings are the first frame of a server.
	settings := try(c.framer.ReadFrame()).or(t).(*http2.SettingsFrame)
	if initial, ok := settings.Value(http2.SettingInitialWindowSize); ok {
		c.initial = int(initial)
	}
	if err := c.framer.WriteSettingsAck(); err != nil {
		t.Fatal(err)
	}
	go c.read()
	return c
}

func (c *rawClient) read() {
	defer close(c.answers)
	for {
		frame, err := c.framer.ReadFrame()
		c.credit.L.Lock()
		if window, ok := frame.(*http2.WindowUpdateFrame); ok {
			c.window[window.StreamID] += int(window.Increment)
		}
		c.ended = err != nil
		c.credit.Broadcast()
		c.credit.L.Unlock()
		if err != nil {
			c.answers <- err.Error()
			return
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			text := fmt.Sprint(f.StreamID, ":")
			for _, field := range f.Fields {
				if strings.HasPrefix(field.Name, "grpc-") || field.Name == ":status" {
					text += fmt.Sprint(" ", field.Name, "=", field.Value)
				}
			}
			c.answers <- text
		case *http2.GoAwayFrame:
			c.answers <- fmt.Sprintf("GOAWAY %v %s", f.ErrCode, f.DebugData())
		case *http2.RSTStreamFrame:
			c.answers <- fmt.Sprintf("%d: RST_STREAM %v", f.StreamID, f.ErrCode)
		}
	}
}

// open begins a call.
func (c *rawClient) open(t *testing.T, stream uint32, path string) {
	t.Helper()
	c.block.Reset()
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		if err := c.encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			t.Fatal(err)
		}
	}
	c.credit.L.Lock()
	c.window[stream] += c.initial
	c.credit.L.Unlock()
	param := http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.block.Bytes(), EndHeaders: true}
	if err := c.framer.WriteHeaders(param); err != nil {
		t.Fatal(err)
	}
}

// send sends a message of a call, and reports whether there was credit. A stream that the server left gets no more of it.
func (c *rawClient) send(t *testing.T, stream uint32, last bool, body []byte) bool {
	t.Helper()
	message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	c.credit.L.Lock()
	for !c.ended && c.window[0] < len(message) {
		c.credit.Wait()
	}
	if c.ended || c.window[stream] < len(message) {
		c.credit.L.Unlock()
		return false
	}
	c.window[0] -= len(message)
	c.window[stream] -= len(message)
	c.credit.L.Unlock()
	if err := c.framer.WriteData(stream, last, message); err != nil {
		t.Fatal(err)
	}
	return true
}

// Case A6: a JSON web token with many claims.
func TestLargeMetadata(t *testing.T) {
	onBoth(t, func(t *testing.T, s *server) {
		for _, size := range []int{20 << 10, 200 << 10} {
			t.Run(fmt.Sprint(size>>10, " KiB"), func(t *testing.T) {
				c := connect(t, s.address)
				large := metadata.AppendToOutgoingContext(ctx(t), "x-claims", strings.Repeat("c", size))
				for range 5 {
					try(pb.NewKVClient(c.conn).Range(large, &pb.RangeRequest{Key: []byte("a")})).or(t)
				}
				c.lives(t)
			})
		}
	})
}
