package sbom

import (
	"strings"
	"testing"
)

const (
	bsd2 = "Redistribution and use in source and binary forms, ...\nRedistributions in binary form must reproduce the above"
	bsd3 = bsd2 + "\nNeither the name ... may be used to endorse or\npromote products"
	mit  = "Permission is hereby granted, free of charge, to any person ... THE SOFTWARE IS PROVIDED \"AS IS\""
)

func TestLicenceIsReadFromItsWords(t *testing.T) {
	for _, tt := range []struct {
		texts []Text
		want  string // or, if it begins with "!", a part of the error
	}{
		{[]Text{{"LICENSE", bsd3}}, "BSD-3-Clause"},
		{[]Text{{"LICENSE", bsd2}}, "BSD-2-Clause"},
		{[]Text{{"LICENSE", "Apache License\n   Version 2.0, January 2004"}, {"NOTICE", "made by somebody"}}, "Apache-2.0"},
		{[]Text{{"LICENSE", mit + bsd3}}, "BSD-3-Clause AND MIT"},
		{[]Text{{"LICENSE", "All rights reserved."}}, "!the licence in LICENSE is none that is known here"},
		{[]Text{{"NOTICE", "made by somebody"}}, "!no licence"},
		{nil, "!no licence"},
	} {
		got, err := licence(tt.texts)
		if want, wrong := strings.CutPrefix(tt.want, "!"); wrong && (err == nil || !strings.Contains(err.Error(), want)) || !wrong && (err != nil || got != want) {
			t.Errorf("%v: %q, %v, want %s", tt.texts, got, err, tt.want)
		}
	}
}
