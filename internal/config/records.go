package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxText is what a length in one byte says (RFC 1035 section 3.3).
const maxText = 255

// record reads one of records.
func (f *file) record(v value, d *DNS) {
	m, ok := v.fields(&recordBlock)
	if !ok {
		return
	}
	r := Record{Pos: v.pos()}
	name := func(v value, dst *string) {
		parsed(v, dst, func(s string) (string, *Fault) { return parseRecordName(s, d) })
	}
	name(m.need("name"), &r.Name)
	var said []string
	for _, key := range []string{"address", "addresses", "cname", "srv", "txt"} {
		if !m.get(key).absent() {
			said = append(said, key)
		}
	}
	switch {
	case len(said) == 0:
		v.problem("does not say what the name stands for", "write address, addresses, cname, srv or txt: "+recordBlock.example)
	case len(said) > 1:
		m.keys[said[1]].problem("a record has one of "+strings.Join(said, ", "), "remove all but one, or write a record for each")
	}
	var one netip.Addr
	if parsed(m.get("address"), &one, parseRecordAddress); one.IsValid() {
		r.Addresses = []netip.Addr{one}
	}
	if list := m.get("addresses"); !list.absent() {
		if list.emptyList() {
			list.problem("a name without an address", "write addresses, or remove the record")
		}
		r.Addresses = addressesOf(list, parseRecordAddress)
	}
	cname := m.get("cname")
	if name(cname, &r.CNAME); r.CNAME != "" && r.CNAME == r.Name {
		cname.problem("the name stands for itself", "write the name that has the address, or the address")
	} else if strings.HasPrefix(r.CNAME, "*.") {
		cname.problem(quote(r.CNAME)+" is no single name", "write one without *")
	}
	if s := m.get("srv"); !s.absent() {
		r.SRV = s.srv(m.get("name"), r.Name, name)
	}
	r.TXT = m.get("txt").recordTexts()
	zones := f.zoneNames(m.get("zones"))
	if m.get("zones").emptyList() {
		m.get("zones").problem("a name that is known nowhere", "write zones: [NAME], or leave it out")
	}
	for _, z := range zones {
		if len(d.Zones) > 0 && !slices.Contains(d.Zones, z.text) && f.zoneNamed[z.text] {
			z.at.problem("dns does not answer in zone "+quote(z.text), Suggest(z.text, "have", d.Zones))
		}
	}
	r.Zones = plain(zones)
	if r.Name != "" {
		d.Records = append(d.Records, r)
		f.records = append(f.records, m)
	}
}

// srv reads where a service is.
func (v value) srv(nameAt value, name string, parse func(value, *string)) *SRV {
	m, ok := v.fields(&srvBlock)
	if !ok {
		return nil
	}
	if labels := strings.Split(name, "."); name != "" && (len(labels) < 3 || labels[0][0] != '_' || labels[1][0] != '_') {
		nameAt.problem(quote(name)+" is not the name of a service", "names of services begin with that of the service and of the protocol, such as _imap._tcp")
	}
	srv := &SRV{}
	parse(m.need("target"), &srv.Target)
	for key, dst := range map[string]*uint16{"port": &srv.Port, "priority": &srv.Priority, "weight": &srv.Weight} {
		lo, n := 0, 0
		at := m.get(key)
		if key == "port" {
			lo, at = 1, m.need(key)
		}
		if at.int(&n, lo, 65535) {
			*dst = uint16(n)
		}
	}
	return srv
}

// recordTexts reads the texts of a record.
func (v value) recordTexts() []string {
	if v.emptyList() {
		v.problem("a list without texts", "write one, or remove the record")
	}
	return plain(v.texts(func(s string) *Fault {
		if len(s) > maxText {
			return &Fault{fmt.Sprintf("has %d bytes", len(s)), fmt.Sprintf("write %d or less", maxText)}
		}
		return nil
	}))
}

// parseRecordName reads a name of a record: it is in the site's domain unless it
// says otherwise.
func parseRecordName(s string, d *DNS) (string, *Fault) {
	name := strings.ToLower(s)
	full, absolute := strings.CutSuffix(name, ".")
	switch {
	case absolute:
		name = full
	case name == "@":
		name = d.Domain
	case d.Domain == "" || InDomain(name, d.Domain) || InDomain(name, d.ServiceDomain):
	default:
		name += "." + d.Domain
	}
	if !IsDomainName(name) {
		return "", &Fault{quote(s) + " is not a DNS name", "names have letters, digits, -, _ and dots, 1 to 63 characters between dots and 253 in all; *. may be in front"}
	}
	return name, nil
}

func parseRecordAddress(s string) (netip.Addr, *Fault) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsMulticast() {
		return netip.Addr{}, &Fault{quote(s) + " is not an IP address of a machine", `write one such as 10.0.0.101 or "fd00:10::101"`}
	}
	return a.Unmap(), nil
}

// checkRecords looks for what cannot be beside each other (RFC 1034 section
// 3.6.2), and for names that lead back to themselves.
func (f *file) checkRecords() {
	d := f.cfg.DNS
	meet := func(x, y *Record) bool {
		return x.Zones == nil || y.Zones == nil || slices.ContainsFunc(x.Zones, func(z string) bool { return slices.Contains(y.Zones, z) })
	}
	byName := map[string][]int{}
	alias := map[string]string{}
	for i := range d.Records {
		r := &d.Records[i]
		for _, j := range byName[r.Name] {
			if o := &d.Records[j]; (r.CNAME != "" || o.CNAME != "") && meet(r, o) {
				f.records[i].keys["name"].problem(quote(r.Name)+" stands for another name, and has something else, too",
					"the other one is at "+o.Pos.String()+"; keep one of them, or give them different zones")
				break
			}
		}
		byName[r.Name] = append(byName[r.Name], i)
		if r.CNAME != "" && r.Zones == nil && r.CNAME != r.Name {
			alias[r.Name] = r.CNAME
			if loops(alias, r.Name) {
				f.records[i].keys["cname"].problem(quote(r.Name)+" leads back to itself", "write a name that has an address")
				delete(alias, r.Name)
			}
		}
	}
}

func loops(alias map[string]string, name string) bool {
	at := alias[name]
	for range alias {
		if at == name {
			return true
		}
		at = alias[at]
	}
	return false
}

// InDomain says whether a name is a domain or below it.
func InDomain(name, domain string) bool {
	return domain != "" && (name == domain || strings.HasSuffix(name, "."+domain))
}
