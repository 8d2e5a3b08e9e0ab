package hubble

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// encoded is a message that is bytes already.
type encoded []byte

// codec is gRPC's own, which what is encoded already passes by.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2. An encoded message's buffer goes back to buffers when it
// was written.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*encoded); ok {
		return mem.BufferSlice{mem.NewBuffer((*[]byte)(m), buffers{})}, nil
	}
	return c.CodecV2.Marshal(v)
}

// buffers are those of encoded messages.
type buffers struct{}

// bufferSize has room for most messages; it is above what gRPC thinks worth to be given back.
const bufferSize = 2048

var pool = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferSize)
	return &b
}}

// Get implements mem.BufferPool.
func (buffers) Get(int) *[]byte {
	return pool.Get().(*[]byte)
}

// Put implements mem.BufferPool.
func (buffers) Put(b *[]byte) {
	*b = (*b)[:0]
	pool.Put(b)
}
