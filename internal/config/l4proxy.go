package config

import (
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// maxL4Interval is a year of seconds. l4proxy has no limit; time.Duration has.
const maxL4Interval = 365 * 24 * 3600

// l4proxy reads a file of l4proxy's format.
func (f *file) l4proxy(root value) {
	top, _ := root.fields(&l4Block)
	for _, v := range top.get("frontends").list() {
		f.l4Frontend(v)
	}
}

func (f *file) l4Frontend(v value) {
	m, ok := v.fields(&l4FrontendBlock)
	if !ok {
		return
	}
	fe := Frontend{Pos: v.pos(), DataPlane: edge.DataPlaneProxy, Health: DefaultHealth, Protocol: edge.TCP, Terms: DefaultTerms}
	bind := m.need("bind")
	// A bare port is a number to YAML and text to l4proxy.
	if !bind.absent() && bind.node.Tag == "!!int" {
		fe.Listen = bind.listen(bind.node.Value, parseBind)
	} else if s, ok := bind.text(); ok {
		fe.Listen = bind.listen(s, parseBind)
	}
	var seconds int
	if m.get("healthInterval").int(&seconds, 0, maxL4Interval) {
		fe.Health.Interval = time.Duration(seconds) * time.Second
	}
	m.get("timeout").duration(&fe.IdleTimeout, time.Millisecond, maxL4Interval*time.Second, true)
	fe.Backends = backends(m.need("backends"), &l4BackendBlock, fe.Listen, fe.DataPlane)
	f.claim(&fe, bind, nil, sharing{})
	f.add(fe, nil, v, value{})
}
