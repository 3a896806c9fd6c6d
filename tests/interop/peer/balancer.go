package peer

import (
	"io"
	"net"
	"slices"
	"sync"
)

// Balancer passes connections on to one of several servers, like a Service of Kubernetes.
type Balancer struct {
	listener net.Listener
	mu       sync.Mutex
	to       []string
	turn     int
	open     map[net.Conn]string
}

// NewBalancer listens on loopback and passes connections on to the servers at these addresses in turn.
func NewBalancer(to ...string) (*Balancer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &Balancer{listener: l, to: to, open: map[net.Conn]string{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(c)
		}
	}()
	return b, nil
}

// Address is where the balancer listens.
func (b *Balancer) Address() string { return b.listener.Addr().String() }

// Move passes new connections on to these servers, and closes those to all others.
func (b *Balancer) Move(to ...string) (closed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.to = to
	for c, address := range b.open {
		if !slices.Contains(to, address) {
			c.Close()
			closed++
		}
	}
	return closed
}

// Close ends the balancer and its connections.
func (b *Balancer) Close() {
	b.listener.Close()
	b.Move()
}

func (b *Balancer) serve(c net.Conn) {
	defer c.Close()
	b.mu.Lock()
	if len(b.to) == 0 {
		b.mu.Unlock()
		return
	}
	address := b.to[b.turn%len(b.to)]
	b.turn++
	b.open[c] = address
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.open, c)
	}()
	s, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		_, _ = io.Copy(s, c)
		s.Close()
	}()
	_, _ = io.Copy(c, s)
}
