package nat

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/nft"
)

// The kernel is read by netlink: nft would print all elements as text, which
// takes it seconds with many of them, and its text differs between versions.

// kernel is a connection to the kernel in the network namespace of the thread.
type kernel struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func openKernel() (kernel, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return kernel{}, err
	}
	return kernel{conn: conn, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}}, nil
}

func (k kernel) close() { _ = k.conn.CloseLasting() }

// exists says whether there is a table.
func (k kernel) exists() (bool, error) {
	tables, err := k.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == Table }), nil
}

func tableExists() (bool, error) {
	k, err := openKernel()
	if err != nil {
		return false, fmt.Errorf("nat: %w", explain(err))
	}
	defer k.close()
	exists, err := k.exists()
	if err != nil {
		return false, fmt.Errorf("nat: %w", explain(err))
	}
	return exists, nil
}

// readKernel reads the table.
func readKernel() (found, error) {
	k, err := openKernel()
	if err != nil {
		return found{}, err
	}
	defer k.close()
	f := found{}
	if f.exists, err = k.exists(); err != nil || !f.exists {
		return f, err
	}
	f.chains, err = k.chains()
	if err == nil {
		chains := f.chains
		f.content, err = readContent()
		f.chains = chains
	}
	if errors.Is(err, errLayout) {
		return found{exists: true, other: true}, nil
	}
	return f, err
}

// chains compares what is not elements with the layout, and returns the chains
// that are beside that.
func (k kernel) chains() (map[string]bool, error) {
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	sets, err := k.conn.GetSets(k.table)
	if err != nil {
		return nil, err
	}
	rules, err := nft.Rules(Table)
	if err != nil {
		return nil, err
	}
	beside, want, have := map[string]bool{}, outline(layout()), rules
	for _, c := range chains {
		if c.Table.Name != Table {
			continue
		}
		have = append(have, "chain "+c.Name)
		if madeWhenNeeded.MatchString(c.Name) {
			beside[c.Name] = true
			want = append(want, outline(chainOf(c.Name))...)
		}
	}
	for _, s := range sets {
		if !s.Anonymous {
			have = append(have, "set "+s.Name)
		}
	}
	// By what they belong to alone: the rules of a chain have an order.
	order := func(x, y string) int { return strings.Compare(head(x), head(y)) }
	slices.SortStableFunc(have, order)
	slices.SortStableFunc(want, order)
	if !slices.Equal(have, want) {
		return nil, errLayout
	}
	return beside, nil
}

// outline is a line for each chain, set, map and rule; of a rule the comment.
func outline(objects []knftables.Object) []string {
	var lines []string
	for _, o := range objects {
		switch o := o.(type) {
		case *knftables.Chain:
			lines = append(lines, "chain "+o.Name)
		case *knftables.Set:
			lines = append(lines, "set "+o.Name)
		case *knftables.Map:
			lines = append(lines, "set "+o.Name)
		case *knftables.Rule:
			lines = append(lines, "rule "+o.Chain+" "+*o.Comment)
		}
	}
	return lines
}

func head(line string) string {
	if fields := strings.SplitN(line, " ", 3); fields[0] == "rule" {
		return fields[0] + " " + fields[1]
	}
	return line
}

// remove deletes the elements of sets that find has found. Those that have timed
// out, or were deleted by somebody else, in the meantime make all of it fail: it
// is tried again.
func (k kernel) remove(find func() (map[string][]nft.Element, error)) (err error) {
	const (
		attempts = 5
		together = 500 // elements, in a message of at most 64 KiB
	)
	for range attempts {
		found, e := find()
		if e != nil {
			return e
		}
		err = nil
		for name, elements := range found {
			for part := range slices.Chunk(elements, together) {
				keys := make([]nftables.SetElement, len(part))
				for i := range part {
					keys[i].Key = part[i].Key
				}
				e := k.conn.SetDeleteElements(&nftables.Set{Table: k.table, Name: name}, keys)
				if e == nil {
					e = k.conn.Flush()
				}
				if e != nil {
					err = errors.Join(err, fmt.Errorf("delete elements of %s: %w", name, e))
				}
			}
		}
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return err
}

// interfaceNames returns the names of this machine's interfaces by index.
func interfaceNames() (map[uint32]string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{}
	for _, i := range interfaces {
		names[uint32(i.Index)] = i.Name
	}
	return names, nil
}
