package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// listChains returns the chains of all tables of this network namespace, without what is in sets and maps.
func listChains() (string, error) {
	out, err := exec.Command("nft", "--terse", "list", "ruleset").Output()
	if err != nil {
		return "", fmt.Errorf("nft list ruleset: %w", err)
	}
	return string(out), nil
}

// rulesByChain returns the rules of "FAMILY TABLE CHAIN", as nft lists them.
func rulesByChain(ruleset string) map[string][]string {
	chains := map[string][]string{}
	table, chain := "", ""
	for line := range strings.Lines(ruleset) {
		text := strings.TrimSpace(line)
		fields := strings.Fields(text)
		switch {
		case len(fields) == 4 && fields[0] == "table":
			table = fields[1] + " " + fields[2]
		case len(fields) == 3 && fields[0] == "chain" && fields[2] == "{":
			chain = table + " " + fields[1]
			chains[chain] = nil
		case text == "}":
			chain = ""
		case chain == "" || text == "" || fields[0] == "type" && strings.Contains(text, " hook "):
		default:
			chains[chain] = append(chains[chain], text)
		}
	}
	return chains
}

// compared returns with how many rules each packet was compared, in the order in which they came. A trace has the rules
// that hold, and the end of each chain that begins at a hook: of a chain that a rule has ended, those after it were not
// looked at.
func compared(trace string, chains map[string][]string) []int {
	type visit struct{ packet, chain string }
	last := map[visit]int{} // the rule that ended the chain; all, if none did
	var packets []string
	for line := range strings.Lines(trace) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "trace id ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 5 || fields[2] == "bench-trace" {
			continue
		}
		v := visit{fields[0], strings.Join(fields[1:4], " ")}
		rules, known := chains[v.chain]
		if !known {
			continue
		}
		if !slices.Contains(packets, v.packet) {
			packets = append(packets, v.packet)
		}
		if _, seen := last[v]; !seen {
			last[v] = len(rules)
		}
		text, verdict, ok := strings.Cut(strings.Join(fields[5:], " "), " (verdict ")
		if fields[4] != "rule" || !ok || strings.HasPrefix(verdict, "continue") || strings.HasPrefix(verdict, "jump") {
			continue
		}
		if i := slices.IndexFunc(rules, func(r string) bool { return strings.Join(strings.Fields(r), " ") == text }); i >= 0 {
			last[v] = i + 1
		}
	}
	counts := make([]int, len(packets))
	for v, n := range last {
		counts[slices.Index(packets, v.packet)] += n
	}
	return counts
}
