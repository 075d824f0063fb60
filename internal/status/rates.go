package status

// Rates are how much came and went a second, on average over the last seconds.
type Rates struct {
	Over        Duration `json:"over"` // how long that was
	Connections float64  `json:"connectionsPerSecond"`
	Received    float64  `json:"receivedBytesPerSecond"` // from clients
	Sent        float64  `json:"sentBytesPerSecond"`     // to clients
}

// Got is which part of new connections a backend had in the last minutes, while it
// was there, and which it should have had.
type Got struct {
	Over        Duration `json:"over"` // how long that was
	Connections uint64   `json:"connections"`
	Of          uint64   `json:"of"`     // how many came that it could have got: with data plane nat, those of its IP family
	Share       float64  `json:"share"`  // of Of, 0 to 1
	Wanted      float64  `json:"wanted"` // what it should have had, by the Shares that held when they came, 0 to 1
}
