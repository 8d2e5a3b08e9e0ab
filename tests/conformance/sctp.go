package conformance

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"slices"
)

// A kernel may lack SCTP, so each pod speaks the first half of its handshake itself, by a
// raw socket: INIT is a question, INIT ACK the answer.
const (
	sctpInit    = 1
	sctpInitAck = 2
	sctpClient  = 40000 // source port of questions
	sctpHeader  = 12
	sctpSize    = sctpHeader + 20 // with one INIT or INIT ACK chunk
)

// sctpPacket is a packet with one chunk. tag is the receiver's, initiate the sender's own.
func sctpPacket(from, to uint16, tag uint32, chunk byte, initiate uint32) []byte {
	b := make([]byte, sctpSize)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], tag)
	c := b[sctpHeader:]
	c[0], c[3] = chunk, byte(len(c))
	binary.BigEndian.PutUint32(c[4:], initiate)
	binary.BigEndian.PutUint32(c[8:], 65536) // receive window
	c[13], c[15] = 1, 1                      // one stream each way
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// readSCTP answers questions on the pod's ports and takes answers to its own.
func (p *pod) readSCTP(conn net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, peer, err := conn.ReadFrom(b) // without the IPv4 header
		if err != nil {
			return
		}
		if n != sctpSize {
			continue
		}
		from, to := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		switch {
		case b[sctpHeader] == sctpInit && slices.Contains(ports, int(to)):
			tag := binary.BigEndian.Uint32(b[sctpHeader+4:])
			_, _ = conn.WriteTo(sctpPacket(to, from, tag, sctpInitAck, 1), peer)
		case b[sctpHeader] == sctpInitAck && to == sctpClient:
			p.answered(token(binary.BigEndian.Uint32(b[4:])))
		}
	}
}
