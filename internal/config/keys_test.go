package config

import "testing"

func TestFieldsOfKubernetesHaveTheirPlaces(t *testing.T) {
	c, problems := Parse([]File{{Name: "gatehouse.yaml", Data: []byte("apiVersion: gatehouse.e13.dev/v1\nkubernetes:\n  classless: true\n\n  allow: {}\n")}})
	if c == nil {
		t.Fatal(problems)
	}
	for key, want := range map[string]string{"classless": "gatehouse.yaml:3", "allow": "gatehouse.yaml:5", "selector": "gatehouse.yaml:2"} {
		if got := c.Kubernetes.At(key).String(); got != want {
			t.Errorf("%s is at %s, want %s", key, got, want)
		}
	}
}
