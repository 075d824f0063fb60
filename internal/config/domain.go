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

// Believed says whether a label, in lower case, is one that machines look for by
// themselves, and believe whoever has it: who should be their proxy
// (draft-ietf-wrec-wpad-01; CERT VU#598349), or their way to IPv6 (RFC 5214).
func Believed(label string) bool { return label == "wpad" || label == "isatap" }
