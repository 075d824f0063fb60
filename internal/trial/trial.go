// Package trial has the words in which a running gatehouse and its operator speak
// of a configuration that is tried before it is written to a file: what is sent
// to the daemon's Unix socket, and what comes back. The daemon keeps such a
// configuration in memory only, so that everything that ends the process ends
// the trial, and the files on disk are what there is to go back to.
package trial

import (
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// The paths at the socket. They are answered to root and to the daemon's own
// user, whoever else may connect.
const (
	PathApply   = "/apply"   // POST an Offer
	PathConfirm = "/confirm" // POST a Choice: the files have it now
	PathRevert  = "/revert"  // POST a Choice: go back at once
	PathTrial   = "/trial"   // GET a State
)

// MaxSize is how large an Offer or a State may be, in bytes: JSON makes a third
// more of the files.
const MaxSize = 32 << 20

// The shortest and the longest time that a trial may have. A shorter one is over
// before somebody has read the question; who needs longer than a day writes the file.
const (
	Shortest = time.Second
	Longest  = 24 * time.Hour
)

// Offer is a configuration that the daemon is to try.
type Offer struct {
	Files []Candidate `json:"files"`
	// Seconds are how long it may run without being confirmed. 0: it is only
	// checked, together with the daemon's other files.
	Seconds float64 `json:"seconds"`
}

// Candidate is what one of the daemon's files would have.
type Candidate struct {
	Name string `json:"name"` // as the operator calls it; problems are told with it
	Path string `json:"path"` // of the file that it stands for; set by the daemon
	Data []byte `json:"data"`
	// Was is the SHA-256 of that file when the trial began, in hex; set by the
	// daemon. Empty: it could not be read.
	Was string `json:"was,omitempty"`
}

// Choice ends a trial.
type Choice struct {
	ID string `json:"id"`
}

// State is what runs, and what is tried.
type State struct {
	Files []File `json:"files"` // in the daemon's order
	// Candidates are those of the Offer that was answered, or of the trial, with
	// their Path.
	Candidates []Candidate `json:"candidates,omitempty"`
	Trial      *Trial      `json:"trial,omitempty"` // nil: there is none
	// Problems are those of the Offer, which changes nothing then; or else those
	// that the daemon has with what runs.
	Problems []edge.Problem `json:"problems"`
	Decided  bool           `json:"decided"` // what runs has been applied
	Last     string         `json:"last,omitempty"`
}

// File is one of the daemon's files.
type File struct {
	Path   string `json:"path"`   // absolute
	SHA256 string `json:"sha256"` // of what runs of it, in hex
}

// Trial is a configuration that runs, and is on no disk.
type Trial struct {
	ID    string    `json:"id"`
	Until time.Time `json:"until"`
	Left  float64   `json:"left"` // seconds until then, by the daemon's clock
	By    string    `json:"by"`   // "uid 0"
}
