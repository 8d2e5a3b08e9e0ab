package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// followCommand is the first argument of a process that follows flows by Hubble's API.
const followCommand = "follow"

// follow reads until it is killed.
func follow(args []string) int {
	if err := followAt(args[0]); err != nil {
		fmt.Fprintln(os.Stderr, "follow:", err)
	}
	return 1
}

func followAt(socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := observerpb.NewObserverClient(conn).GetFlows(context.Background(), &observerpb.GetFlowsRequest{Follow: true})
	for err == nil {
		_, err = stream.Recv()
	}
	return errors.Join(errors.New("the stream ended"), err)
}
