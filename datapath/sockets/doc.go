// Package sockets ends the connected UDP sockets of pods that a Service's backend has
// left behind. Nobody answers them any more and no program runs when they send; ended,
// they report it, and their owner connects anew. (Unconnected ones get another backend at
// their next datagram; TCP learns by its own timeouts or a reset.)
package sockets
