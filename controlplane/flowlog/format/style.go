package format

import "time"

// Style is how text is written.
type Style struct {
	Colour bool           // terminal colours
	Zone   *time.Location // of times; nil = local
}

// Terminal colours.
const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	reset  = "\x1b[0m"
)

func (s Style) paint(colour, text string) string {
	if !s.Colour || text == "" {
		return text
	}
	return colour + text + reset
}

// Good, Bad, Warn, Strong and Faint colour what they say.
func (s Style) Good(text string) string   { return s.paint(green, text) }
func (s Style) Bad(text string) string    { return s.paint(red, text) }
func (s Style) Warn(text string) string   { return s.paint(yellow, text) }
func (s Style) Strong(text string) string { return s.paint(bold, text) }
func (s Style) Faint(text string) string  { return s.paint(dim, text) }

func (s Style) time(t time.Time, layout string) string {
	if s.Zone == nil {
		return t.Local().Format(layout)
	}
	return t.In(s.Zone).Format(layout)
}
