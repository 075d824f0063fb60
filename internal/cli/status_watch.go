package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"e13.dev/gatehouse/internal/status"
)

const (
	// The alternate screen is another one than that with the shell's lines, which
	// are there again at the end.
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	clearScreen = "\x1b[2J"
)

// shown is an answer of the daemon, as it is drawn.
type shown struct {
	text  string
	err   error
	panic any
}

// live shows something on all of a terminal, again each second, until ctx ends or
// q is typed. The terminal is as it was before then, however that comes about.
func live(ctx context.Context, in, out *os.File, colour palette, show func(context.Context, io.Writer) error) (err error) {
	// Before the screen is another: why nobody answers is to stay.
	var first bytes.Buffer
	if err := show(ctx, &first); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	keys := make(chan key)
	if term.IsTerminal(int(in.Fd())) {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(in.Fd()), before) }()
		go readKeys(ctx, in, keys)
	}
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(out, leaveScreen) }()

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	answers := make(chan shown)
	go func() {
		again := time.NewTicker(watchInterval)
		defer again.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-again.C:
			}
			select {
			case <-ctx.Done():
				return
			case answers <- ask(ctx, show):
			}
		}
	}()
	v := view{palette: colour, at: time.Now()}
	v.take(first.String())
	wipe := true
	for {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			width, height = 80, 24
		}
		frame := v.frame(width, height, time.Now())
		if wipe { // what was there had another width
			frame = clearScreen + frame
		}
		wipe = false
		if _, err := io.WriteString(out, frame); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
			wipe = true
		case k := <-keys:
			if k == keyQuit {
				return nil
			}
			v.scroll(k)
		case answer := <-answers:
			switch {
			case answer.panic != nil:
				panic(answer.panic) // here, where the terminal is put back
			case answer.err != nil && ctx.Err() != nil:
				return nil
			case answer.err != nil:
				v.err = answer.err
			default:
				v.err, v.at = nil, time.Now()
				v.take(answer.text)
			}
		}
	}
}

// ask shows something, whatever comes of it.
func ask(ctx context.Context, show func(context.Context, io.Writer) error) (answer shown) {
	defer func() { answer.panic = recover() }()
	var text bytes.Buffer
	err := show(ctx, &text)
	return shown{text: text.String(), err: err}
}

// view is what is on the screen, and where in it somebody is.
type view struct {
	palette
	said  []string  // lines, as long as they are
	lines []string  // said, folded for a screen that is width wide
	width int       // 0: they are to be folded anew
	at    time.Time // when the daemon said so
	err   error     // why it has not said anything since
	top   int       // the first line that is seen
	room  int       // for lines, when it was last drawn
}

func (v *view) take(text string) {
	v.said, v.width = strings.Split(strings.TrimSuffix(text, "\n"), "\n"), 0
}

// fold breaks what does not fit, for nobody can scroll to the right, and problems
// end with what would be right. The table stays one, and is cut.
func (v *view) fold(width int) {
	if v.width == width {
		return
	}
	v.lines, v.width = nil, width
	for i, line := range v.said {
		if strings.HasPrefix(inked.ReplaceAllString(line, ""), tableHead+" ") {
			v.lines = append(v.lines, v.said[i:]...)
			return
		}
		v.lines = append(v.lines, fold(line, width)...)
	}
}

// scroll goes where a key says; frame sees to it that something is there.
func (v *view) scroll(k key) {
	page := max(1, v.room-1)
	switch k {
	case keyDown:
		v.top++
	case keyUp:
		v.top--
	case keyPageDown:
		v.top += page
	case keyPageUp:
		v.top -= page
	case keyHome:
		v.top = 0
	case keyEnd:
		v.top = len(v.lines)
	case keyQuit: // not for us
	}
	v.bound()
}

func (v *view) bound() { v.top = max(0, min(v.top, len(v.lines)-v.room)) }

// frame draws the screen, line by line over what is there, which does not
// flicker.
func (v *view) frame(width, height int, now time.Time) string {
	var lines []string
	if v.err != nil {
		lines = append(lines, v.in(bad, fmt.Sprintf("no answer for %s, this is from before: %s", status.Age(now.Sub(v.at)), harmless(v.err.Error()))))
	}
	v.fold(width)
	v.room = max(0, height-1-len(lines))
	v.bound()
	last := min(len(v.lines), v.top+v.room)
	lines = append(lines, v.lines[v.top:last]...)
	for len(lines) < height-1 {
		lines = append(lines, "")
	}
	keys := "q quit  j/k line  space/b page  g/G ends"
	if v.top > 0 || last < len(v.lines) {
		keys += fmt.Sprintf("  lines %d-%d of %d", v.top+1, last, len(v.lines))
	}
	lines = append(lines[:max(0, height-1)], v.in(quiet, keys))
	var frame strings.Builder
	frame.WriteString("\x1b[H")
	for i, line := range lines {
		if i > 0 {
			frame.WriteString("\r\n")
		}
		frame.WriteString(cut(line, width) + "\x1b[K")
	}
	return frame.String()
}

// key is what was typed.
type key int

const (
	keyQuit key = iota
	keyUp
	keyDown
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
)

// typed are the keys by what terminals send for them; arrows have two forms.
var typed = []struct {
	sent string
	key
}{
	{"q", keyQuit},
	{"\x03", keyQuit},
	{"\x04", keyQuit},
	{"k", keyUp},
	{"\x1b[A", keyUp},
	{"\x1bOA", keyUp},
	{"j", keyDown},
	{"\x1b[B", keyDown},
	{"\x1bOB", keyDown},
	{"\r", keyDown},
	{"b", keyPageUp},
	{"\x1b[5~", keyPageUp},
	{" ", keyPageDown},
	{"\x1b[6~", keyPageDown},
	{"g", keyHome},
	{"\x1b[H", keyHome},
	{"\x1bOH", keyHome},
	{"\x1b[1~", keyHome},
	{"G", keyEnd},
	{"\x1b[F", keyEnd},
	{"\x1bOF", keyEnd},
	{"\x1b[4~", keyEnd},
}

// sequence is what a terminal sends for a key that is no character.
var sequence = regexp.MustCompile(`^\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)`)

// keysIn are the keys of what has been read, and what is left of one that has not
// come as a whole.
func keysIn(read string) (keys []key, rest string) {
next:
	for read != "" {
		for _, t := range typed {
			if after, ok := strings.CutPrefix(read, t.sent); ok {
				keys, read = append(keys, t.key), after
				continue next
			}
		}
		for _, t := range typed {
			if strings.HasPrefix(t.sent, read) {
				return keys, read
			}
		}
		read = read[max(1, len(sequence.FindString(read))):] // it means nothing here
	}
	return keys, ""
}

// readKeys tells of keys until ctx ends; the last Read ends with the process. A
// terminal that is gone is as good as q.
func readKeys(ctx context.Context, in io.Reader, keys chan<- key) {
	var buffer [64]byte
	rest := ""
	for {
		n, err := in.Read(buffer[:])
		found, left := keysIn(rest + string(buffer[:n]))
		rest = left
		if err != nil {
			found = append(found, keyQuit)
		}
		for _, k := range found {
			select {
			case keys <- k:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}
