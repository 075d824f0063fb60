package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"
	"syscall"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Element is one of a set or map, as the kernel has it.
type Element struct {
	Key, End       []byte // End is of an interval
	Value          []byte // of a map; of a verdict, its attributes
	Counted        bool
	Packets, Bytes uint64
}

// Elements reads those of a set or map of a table of the family inet. It is not done by the
// nftables module, whose way to read makes the kernel walk the set from its
// beginning for each 4 KiB: 60,000 elements take 1.2 s, and 0.1 s by 32 KiB.
func Elements(table, set string) ([]Element, error) {
	messages, err := dump(unix.NFT_MSG_GETSETELEM, unix.NFT_MSG_NEWSETELEM,
		attribute{unix.NFTA_SET_ELEM_LIST_TABLE, table}, attribute{unix.NFTA_SET_ELEM_LIST_SET, set})
	if err != nil {
		return nil, fmt.Errorf("the elements of %s: %w", set, err)
	}
	var elements []Element
	for _, m := range messages {
		for kind, list := range Attributes(m) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			for _, one := range Attributes(list) {
				elements = append(elements, ParseElement(one))
			}
		}
	}
	return elements, nil
}

// ParseElement takes apart the attributes of an element.
func ParseElement(b []byte) (e Element) {
	const keyEnd = 10 // NFTA_SET_ELEM_KEY_END, Linux 5.6
	for kind, value := range Attributes(b) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.Key = only(value)
		case keyEnd:
			e.End = only(value)
		case unix.NFTA_SET_ELEM_DATA:
			e.Value = only(value)
		case unix.NFTA_SET_ELEM_EXPR:
			e.Counted, e.Packets, e.Bytes = parseCounter(value)
		}
	}
	return e
}

// only returns what is in the one attribute of a struct nft_data.
func only(b []byte) []byte {
	for _, value := range Attributes(b) {
		return value
	}
	return nil
}

func parseCounter(b []byte) (is bool, packets, bytes uint64) {
	for kind, value := range Attributes(b) {
		switch kind {
		case unix.NFTA_EXPR_NAME:
			is = Text(value) == "counter"
		case unix.NFTA_EXPR_DATA:
			c := countOf(value)
			packets, bytes = c.Packets, c.Bytes
		}
	}
	return is, packets, bytes
}

// Attributes are those of a netlink message, or in one of them.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	const typeMask = 0x3fff // NLA_TYPE_MASK: above it are flags
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if size < unix.NLA_HDRLEN || size > len(b) {
				return
			}
			if !yield(kind&typeMask, b[unix.NLA_HDRLEN:size]) {
				return
			}
			b = b[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
		}
	}
}

// Text is what an attribute has that is a name.
func Text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// attribute is one of a request, with the name of something.
type attribute struct {
	kind uint16
	name string
}

var errInterrupted = errors.New("it has changed in the meantime, each time")

// dump lists something of nftables, of the family inet, and returns the
// attributes of each answer.
func dump(request, answer uint16, of ...attribute) ([][]byte, error) {
	const attempts = 10
	for range attempts {
		answers, err := dumpOnce(request, answer, of)
		if !errors.Is(err, errInterrupted) {
			return answers, err
		}
	}
	return nil, errInterrupted
}

func dumpOnce(request, answer uint16, of []attribute) ([][]byte, error) {
	const (
		header   = 4        // bytes of struct nfgenmsg, which begins with the family
		most     = 64 << 10 // the kernel sends half of it at a time at most
		patience = 10       // seconds
		nfnl     = unix.NFNL_SUBSYS_NFTABLES << 8
		room     = 128 // for a request
	)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}); err != nil {
		return nil, err
	}
	m := make([]byte, unix.NLMSG_HDRLEN+header, room)
	binary.NativeEndian.PutUint16(m[4:], nfnl|request)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	m[unix.NLMSG_HDRLEN] = unix.NFPROTO_INET
	for _, a := range of {
		value := a.name + "\x00"
		m = binary.NativeEndian.AppendUint16(m, uint16(unix.NLA_HDRLEN+len(value)))
		m = binary.NativeEndian.AppendUint16(m, a.kind)
		m = append(m, value...)
		for len(m)%unix.NLA_ALIGNTO != 0 {
			m = append(m, 0)
		}
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var answers [][]byte
	for {
		buffer := make([]byte, most)
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
				return nil, errInterrupted
			}
			switch {
			case m.Header.Type == unix.NLMSG_DONE || m.Header.Type == unix.NLMSG_ERROR:
				// Both begin with an error number, which is negative.
				if len(m.Data) >= 4 {
					if e := int32(binary.NativeEndian.Uint32(m.Data)); e < 0 {
						return nil, syscall.Errno(-e)
					}
				}
				return answers, nil
			case m.Header.Type == nfnl|answer && len(m.Data) >= header:
				answers = append(answers, m.Data[header:])
			}
		}
	}
}

// Rules returns a line for each rule of a table of the family inet, "rule CHAIN COMMENT", in their order in each chain.
func Rules(of string) ([]string, error) {
	messages, err := dump(unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, attribute{unix.NFTA_RULE_TABLE, of})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var lines []string
	for _, m := range messages {
		var table, chain, comment string
		for kind, value := range Attributes(m) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = Text(value)
			case unix.NFTA_RULE_CHAIN:
				chain = Text(value)
			case unix.NFTA_RULE_USERDATA:
				comment, _ = userdata.GetString(value, userdata.TypeComment)
			}
		}
		if table == of { // a kernel may list all
			lines = append(lines, "rule "+chain+" "+comment)
		}
	}
	return lines, nil
}

// Exists says whether there is a table of that name, of the family inet.
func Exists(table string) (bool, error) {
	names, err := named(table, unix.NFT_MSG_GETTABLE, unix.NFT_MSG_NEWTABLE, unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_NAME)
	return len(names) > 0, err
}

// Chains returns the names of the chains of a table of the family inet.
func Chains(table string) ([]string, error) {
	return named(table, unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME)
}

// Sets returns the names of the sets and maps of a table of the family inet, but
// for those without one.
func Sets(table string) ([]string, error) {
	messages, err := dump(unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET, attribute{unix.NFTA_SET_TABLE, table})
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	var names []string
	for _, m := range messages {
		var of, name string
		anonymous := false
		for kind, value := range Attributes(m) {
			switch kind {
			case unix.NFTA_SET_TABLE:
				of = Text(value)
			case unix.NFTA_SET_NAME:
				name = Text(value)
			case unix.NFTA_SET_FLAGS:
				anonymous = len(value) == 4 && binary.BigEndian.Uint32(value)&unix.NFT_SET_ANONYMOUS != 0
			}
		}
		if of == table && !anonymous {
			names = append(names, name)
		}
	}
	return names, nil
}

// named lists the names of something that belongs to a table.
func named(table string, request, answer, tableKind, nameKind uint16) ([]string, error) {
	messages, err := dump(request, answer)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var names []string
	for _, m := range messages {
		var of, name string
		for kind, value := range Attributes(m) {
			switch kind {
			case tableKind:
				of = Text(value)
			case nameKind:
				name = Text(value)
			}
		}
		if of == table {
			names = append(names, name)
		}
	}
	return names, nil
}

// Count is what a counter has counted.
type Count struct{ Packets, Bytes uint64 }

// Counters returns the counters of a table of the family inet that have a name.
func Counters(table string) (map[string]Count, error) {
	messages, err := dump(unix.NFT_MSG_GETOBJ, unix.NFT_MSG_NEWOBJ, attribute{unix.NFTA_OBJ_TABLE, table})
	if err != nil {
		return nil, fmt.Errorf("list counters: %w", err)
	}
	counters := map[string]Count{}
	for _, m := range messages {
		var of, name string
		var count Count
		is := false
		for kind, value := range Attributes(m) {
			switch kind {
			case unix.NFTA_OBJ_TABLE:
				of = Text(value)
			case unix.NFTA_OBJ_NAME:
				name = Text(value)
			case unix.NFTA_OBJ_TYPE:
				is = len(value) == 4 && binary.BigEndian.Uint32(value) == unix.NFT_OBJECT_COUNTER
			case unix.NFTA_OBJ_DATA:
				count = countOf(value)
			}
		}
		if is && of == table {
			counters[name] = count
		}
	}
	return counters, nil
}

// countOf reads the attributes of a counter.
func countOf(b []byte) (c Count) {
	for kind, value := range Attributes(b) {
		if len(value) != 8 {
			continue
		}
		switch kind {
		case unix.NFTA_COUNTER_PACKETS:
			c.Packets = binary.BigEndian.Uint64(value)
		case unix.NFTA_COUNTER_BYTES:
			c.Bytes = binary.BigEndian.Uint64(value)
		}
	}
	return c
}
