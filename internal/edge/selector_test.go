package edge

import "testing"

func TestSelectorMatchesAsKubernetesDoes(t *testing.T) {
	labels := map[string]string{"app": "web", "tier": "front", "empty": ""}
	for _, tc := range []struct {
		selector string
		want     bool
	}{
		{"", true},
		{"app=web", true},
		{"app==web", true},
		{"app=db", false},
		{"app!=db", true},
		{"app!=web", false},
		{"missing!=x", true},
		{"app", true},
		{"missing", false},
		{"!missing", true},
		{"!app", false},
		{"app in (web, db)", true},
		{"app in (db)", false},
		{"app notin (db,cache)", true},
		{"app notin (web)", false},
		{"missing notin (web)", true},
		{"app=web,tier=front", true},
		{"app=web, tier in (back,front), !legacy", true},
		{"app=web,tier=back", false},
		{"empty=", true},
		{"app.kubernetes.io/name=web", false},
	} {
		s, err := ParseSelector(tc.selector)
		if err != nil {
			t.Errorf("%q: %v", tc.selector, err)
			continue
		}
		if got := s.Matches(labels); got != tc.want {
			t.Errorf("%q matches %v: got %v, want %v", tc.selector, labels, got, tc.want)
		}
	}
}

func TestSelectorSaysWhatIsWrong(t *testing.T) {
	for selector, want := range map[string]string{
		"app=web,":      `"app=web," has an empty requirement`,
		"app in web":    `"app in web" is no label key`,
		"-x=1":          `"-x" is no label key`,
		"app=a b":       `"a b" is no label value`,
		"app in (a b)":  `"a b" is no label value`,
		"app in (a,(b)": `"app in (a,(b)" is no label key`,
	} {
		if _, err := ParseSelector(selector); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", selector, err, want)
		}
	}
}
