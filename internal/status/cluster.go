package status

import (
	"cmp"
	"fmt"
	"time"
)

// Cluster says how gatehouse stands with the Kubernetes API.
type Cluster struct {
	Synced   bool   `json:"synced"` // everything was read at least once
	Error    string `json:"error,omitempty"`
	Services int    `json:"services"` // of type LoadBalancer, in what is decided from
	Nodes    int    `json:"nodes"`
	// From is the directory whose file is decided from, since the API was not read
	// yet, and SavedAt when the cluster was known to be so. Absent: the API.
	From    string    `json:"from,omitempty"`
	SavedAt time.Time `json:"savedAt,omitzero"`
	// StaleSince is when it was noticed that the API does not answer.
	StaleSince time.Time `json:"staleSince,omitzero"`
	Held       *Loss     `json:"held,omitempty"` // nil: what the API says is believed
	// Requests are those that were sent to the API, and how they were answered.
	Requests []Requests `json:"requests,omitempty"`
}

// Loss is what the API suddenly lacks, and is not believed to be gone.
type Loss struct {
	Missing string    `json:"missing"` // "7 of 9 Services"
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"` // when it will be believed
}

// Requests are requests of one kind to the Kubernetes API.
type Requests struct {
	Verb     string `json:"verb"`     // "get", "list", "watch", "create", "patch"
	Resource string `json:"resource"` // "services", "services/status", "events"
	Code     string `json:"code"`     // the class of the answer: "2xx"; "none": there was none
	Count    uint64 `json:"count"`
}

// Well says that nobody has to look.
func (c Cluster) Well() bool { return c.Held == nil && c.Error == "" }

// Says is how things stand with the cluster, in words.
func (c Cluster) Says(now time.Time) string {
	if !c.Synced && c.From == "" && c.Services+c.Nodes == 0 { // nothing is decided from it
		return cmp.Or(c.Error, "not read yet")
	}
	text := fmt.Sprintf("%d services, %d nodes, %s", c.Services, c.Nodes, c.source(now))
	if c.Held != nil {
		text += fmt.Sprintf("; it lacks %s since %s, which is not believed until %s", c.Held.Missing, Clock(now, c.Held.Since), Clock(now, c.Held.Until))
	}
	if c.Error != "" {
		text += "; " + c.Error
	}
	return text
}

// source says where what is decided from comes from.
func (c Cluster) source(now time.Time) string {
	text := "from the API"
	if c.From != "" {
		text = "from " + c.From + " of " + Clock(now, c.SavedAt)
	}
	if !c.StaleSince.IsZero() {
		text += ", stale since " + Clock(now, c.StaleSince)
	}
	return text
}

// Clock prints a time as one looks at a clock, with the day if it is another.
func Clock(now, t time.Time) string {
	t = t.In(now.Location())
	if now.Format(time.DateOnly) == t.Format(time.DateOnly) {
		return t.Format("15:04")
	}
	return t.Format("2006-01-02 15:04")
}
