package config

import (
	"regexp"
	"strings"
)

// checkSelector accepts the label selectors that kubectl's -l takes:
// "a=b, c!=d, e in (x,y), f notin (z), !g, h". It is written out here so that
// reading a file needs nothing of Kubernetes.
func checkSelector(s string) *fault {
	p := selectorParser{tokens: selectorTokens(s)}
	if len(p.tokens) == 0 {
		return nil
	}
	for {
		if f := p.requirement(); f != nil {
			return f
		}
		switch next := p.next(); next {
		case "":
			return nil
		case ",":
		default:
			return selectorFault("expected a comma before " + quote(next))
		}
	}
}

func selectorFault(what string) *fault {
	return &fault{"not a label selector: " + what, `write one such as "app in (web, api), tier=front, !internal"`}
}

type selectorParser struct{ tokens []string }

func (p *selectorParser) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}

func (p *selectorParser) next() string {
	t := p.peek()
	if t != "" {
		p.tokens = p.tokens[1:]
	}
	return t
}

// requirement reads up to the next comma that is not in brackets.
func (p *selectorParser) requirement() *fault {
	negated := p.peek() == "!"
	if negated {
		p.next()
	}
	key := p.next()
	if f := checkLabelKey(key); f != nil {
		return f
	}
	if negated {
		return nil
	}
	switch p.peek() {
	case "=", "==", "!=":
		p.next()
		if next := p.peek(); next == "" || next == "," {
			return nil // "a=" wants the label with an empty value
		}
		return checkLabelValue(p.next())
	case "in", "notin":
		op := p.next()
		if p.next() != "(" {
			return selectorFault(op + " is followed by values in brackets")
		}
		for {
			if f := checkLabelValue(p.next()); f != nil {
				return f
			}
			switch p.next() {
			case ")":
				return nil
			case ",":
			default:
				return selectorFault("the values of " + op + " end with )")
			}
		}
	}
	return nil
}

// selectorTokens splits a selector into names and signs.
func selectorTokens(s string) []string {
	var tokens []string
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return tokens
		}
		n := strings.IndexAny(s, " \t\r\n=!(),")
		switch {
		case n < 0:
			n = len(s)
		case n == 0 && (strings.HasPrefix(s, "==") || strings.HasPrefix(s, "!=")):
			n = 2
		case n == 0:
			n = 1
		}
		tokens = append(tokens, s[:n])
		s = s[n:]
	}
}

var (
	labelName    = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	dnsSubdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

// qualified says whether s is [PREFIX/]NAME, as label keys and classes are.
func qualified(s string) bool {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		return labelName.MatchString(s)
	}
	return len(prefix) <= 253 && dnsSubdomain.MatchString(prefix) && labelName.MatchString(name)
}

func checkLabelKey(s string) *fault {
	switch {
	case s == "":
		return selectorFault("it ends where a label should be")
	case !qualified(s):
		return selectorFault(quote(s) + " is not a label")
	}
	return nil
}

func checkLabelValue(s string) *fault {
	switch {
	case s == "":
		return selectorFault("it ends where a value should be")
	case !labelName.MatchString(s):
		return selectorFault(quote(s) + " is not a value of a label")
	}
	return nil
}

func checkClass(s string) *fault {
	if qualified(s) {
		return nil
	}
	return &fault{quote(s) + " is not a load balancer class", "write one such as " + DefaultClass}
}
