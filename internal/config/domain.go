package config

import "strings"

// IsDomainName says whether a text is a name as a RecordSet has it: in lower case,
// with labels of letters, digits, - and _ (RFC 1035 §2.3.1; the last one for
// services, RFC 2782), without a dot at its end; the first label may be "*"
// (RFC 4592).
func IsDomainName(s string) bool {
	s = strings.TrimPrefix(s, "*.")
	if s == "" || len(s) > 251 { // 253 with "*."
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
