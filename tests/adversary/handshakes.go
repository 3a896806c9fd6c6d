package main

import (
	"crypto/tls"
	"net"
	"time"
)

// handshakeRows never finish a handshake.
var handshakeRows = []row{
	{
		name: "handshakes-silent", what: "8,300 TCP connections that say nothing",
		seconds: [2]float64{2, 15},
		attack: func(a *attacker) error {
			a.begin()
			conns := a.hold(a.Scale.of(4000, 8300), a.tcp)
			<-a.ctx.Done()
			a.count("closed by the server", dropped(conns))
			return nil
		},
	},
	{
		name: "handshakes-half", what: "8,300 connections that send a ClientHello and nothing more",
		seconds: [2]float64{2, 15},
		attack: func(a *attacker) error {
			a.hellos(a.Scale.of(2000, 8300))
			return nil
		},
	},
	{
		name: "handshakes-hello", what: "1,500 connections that send a ClientHello and nothing more, on a server with 1,024 descriptors",
		full:    true,
		fixture: fixture{descriptors: 1024},
		seconds: [2]float64{8, 12},
		attack: func(a *attacker) error {
			// A handshake that has begun must not keep the place of one that would end.
			a.hellos(1500)
			return nil
		},
	},
	{
		name: "handshakes-slow", what: "1,000 connections that send a ClientHello, one byte a second",
		seconds: [2]float64{2, 15},
		attack: func(a *attacker) error {
			hello := clientHello()
			a.begin()
			conns := a.hold(1000, a.tcp)
			closed := make([]bool, len(conns))
			for i := 0; i < len(hello) && !a.over(); i++ {
				for k, conn := range conns {
					if _, err := conn.Write(hello[i : i+1]); err != nil && !closed[k] {
						closed[k] = true
						a.count("closed by the server", 1)
					}
				}
				a.rest(time.Second)
			}
			<-a.ctx.Done()
			return nil
		},
	},
	{
		name: "handshakes-storm", what: "full handshakes of a certificate that is no user, as fast as possible, 64 at once",
		attack: func(a *attacker) error {
			config, err := clientTLS(a.Certs, "nobody", "h2")
			if err != nil {
				return err
			}
			a.begin()
			a.each(64, func(int) error {
				conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 2 * time.Second}, "tcp", a.Address, config)
				if err != nil {
					return err
				}
				a.count("handshakes", 1)
				return conn.Close()
			})
			return nil
		},
	},
}

func (a *attacker) tcp() (net.Conn, error) { return net.DialTimeout("tcp", a.Address, 3*time.Second) }

// hellos holds n connections that send a ClientHello and nothing more.
func (a *attacker) hellos(n int) {
	hello := clientHello()
	a.begin()
	conns := a.hold(n, func() (net.Conn, error) {
		conn, err := a.tcp()
		if err == nil {
			_, err = conn.Write(hello)
		}
		return conn, err
	})
	<-a.ctx.Done()
	a.count("closed by the server", dropped(conns))
}

// clientHello is the first flight of a TLS client.
func clientHello() []byte {
	near, far := net.Pipe()
	go func() {
		_ = tls.Client(near, &tls.Config{ServerName: "127.0.0.1", NextProtos: []string{"h2"}}).Handshake()
	}()
	hello := make([]byte, 1<<14)
	n, _ := far.Read(hello)
	far.Close()
	near.Close()
	return hello[:n]
}
