package main

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var passwordRows = []row{{
	name: "passwords-guesses", what: "2,000 password guesses at once; afterwards the right password logs in",
	attack: func(a *attacker) error {
		var clients []pb.AuthClient
		for range floods {
			clients = append(clients, pb.NewAuthClient(a.grpc("nobody")))
		}
		a.begin()
		a.each(a.Scale.of(500, 2000), func(i int) error {
			_, err := clients[i%floods].Authenticate(a.ctx, &pb.AuthenticateRequest{Name: "login", Password: "wrong"})
			a.count("guesses", 1)
			return err
		})
		// A login after the attack must not wait for the guesses of clients that are gone.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		began := time.Now()
		if _, err := clients[0].Authenticate(ctx, &pb.AuthenticateRequest{Name: "login", Password: password}); err != nil {
			a.fail("the login afterwards failed: %s", short(err))
		}
		a.set("ms for the login afterwards", int(time.Since(began).Milliseconds()))
		return nil
	},
}}
