package flowlog

import (
	"encoding/json"
	"math"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// text is JSON on its way. Its methods with a key leave out a value that is zero, as both
// protojson and omitempty do.
type text []byte

// separate adds the comma between two values.
func (o *text) separate() {
	if c := (*o)[len(*o)-1]; c != '{' && c != '[' {
		*o = append(*o, ',')
	}
}

// key's are plain.
func (o *text) key(key string) {
	o.separate()
	*o = append(append(append(*o, '"'), key...), '"', ':')
}

func (o *text) open(c byte) {
	if c == '{' && len(*o) > 0 && (*o)[len(*o)-1] == '}' {
		o.separate()
	}
	*o = append(*o, c)
}

func (o *text) close(c byte) { *o = append(*o, c) }

func (o *text) object(key string) {
	o.key(key)
	o.open('{')
}

func (o *text) number(key string, n uint64) {
	if n != 0 {
		o.key(key)
		*o = strconv.AppendUint(*o, n, 10)
	}
}

func (o *text) string(key, value string) {
	if value != "" {
		o.key(key)
		*o = append(*o, '"')
		o.escape(value)
		*o = append(*o, '"')
	}
}

func (o *text) strings(key string, values []string) {
	if len(values) == 0 {
		return
	}
	o.key(key)
	o.open('[')
	for _, v := range values {
		o.separate()
		*o = append(*o, '"')
		o.escape(v)
		*o = append(*o, '"')
	}
	o.close(']')
}

func (o *text) address(key string, a netip.Addr) {
	if !a.IsValid() { // has other words to append than to print
		o.string(key, a.String())
		return
	}
	o.key(key)
	*o = append(a.AppendTo(append(*o, '"')), '"')
}

// time is a Timestamp: in UTC, with as many threes of digits as it needs.
func (o *text) time(key string, t time.Time) {
	o.key(key)
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b := append(*o, '"')
	b = append(digits(b, year, 4), '-')
	b = append(digits(b, int(month), 2), '-')
	b = append(digits(b, day, 2), 'T')
	b = append(digits(b, hour, 2), ':')
	b = append(digits(b, minute, 2), ':')
	b = digits(b, second, 2)
	switch ns := t.Nanosecond(); {
	case ns == 0:
	case ns%1e6 == 0:
		b = digits(append(b, '.'), ns/1e6, 3)
	case ns%1e3 == 0:
		b = digits(append(b, '.'), ns/1e3, 6)
	default:
		b = digits(append(b, '.'), ns, 9)
	}
	*o = append(b, 'Z', '"')
}

// digits adds the last of n, so many.
func digits(to []byte, n, size int) []byte {
	at := len(to)
	to = append(to, "000000000"[:size]...)
	for i := at + size - 1; i >= at; i-- {
		to[i] = byte('0' + n%10)
		n /= 10
	}
	return to
}

// quote makes a string of what is there from start on, JSON without control characters.
func (o *text) quote(start int) {
	b := *o
	more := 2
	for _, c := range b[start:] {
		if c == '"' || c == '\\' {
			more++
		}
	}
	from := len(b)
	for range more {
		b = append(b, '"')
	}
	for to := len(b) - 1; from > start; { // the last one is the closing quote
		from--
		to--
		c := b[from]
		b[to] = c
		if c == '"' || c == '\\' {
			to--
			b[to] = '\\'
		}
	}
	b[start] = '"'
	*o = b
}

// escape adds a string's text as protojson has it; bytes that are no UTF-8, over which
// protojson fails, are U+FFFD.
func (o *text) escape(s string) {
	if plain(s) {
		*o = append(*o, s...)
		return
	}
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			*o = append(*o, '\\', byte(c))
		case c == '\b':
			*o = append(*o, `\b`...)
		case c == '\f':
			*o = append(*o, `\f`...)
		case c == '\n':
			*o = append(*o, `\n`...)
		case c == '\r':
			*o = append(*o, `\r`...)
		case c == '\t':
			*o = append(*o, `\t`...)
		case c < ' ':
			const hex = "0123456789abcdef"
			*o = append(*o, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			*o = utf8.AppendRune(*o, c)
		}
	}
}

// plain reports whether a string needs no escapes, for protojson or encoding/json.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

// goString is a string as encoding/json has it.
func (o *text) goString(key, value string, omitempty bool) {
	if omitempty && value == "" {
		return
	}
	o.key(key)
	if plain(value) {
		*o = append(append(append(*o, '"'), value...), '"')
		return
	}
	b, _ := json.Marshal(value) // a string always can
	*o = append(*o, b...)
}

// float is a number as encoding/json has it.
func (o *text) float(key string, f float64) {
	if f == 0 {
		return
	}
	o.key(key)
	format := byte('f')
	if a := math.Abs(f); a < 1e-6 || a >= 1e21 {
		format = 'e'
	}
	*o = strconv.AppendFloat(*o, f, format, -1, 64)
	if b := *o; format == 'e' && len(b) >= 4 && b[len(b)-4] == 'e' && b[len(b)-3] == '-' && b[len(b)-2] == '0' { // e-09 is e-9
		b[len(b)-2] = b[len(b)-1]
		*o = b[:len(b)-1]
	}
}
