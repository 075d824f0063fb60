package main

import (
	"strings"
	"testing"
)

// What ginkgo says becomes what we want to know: tests out of focus are none, those that skip themselves say why, and
// those that we leave out are named.
func TestReport(t *testing.T) {
	results, err := read([]byte(`[{"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "State": "passed"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] LoadBalancers [Feature:LoadBalancer]"], "LeafNodeText": "should a [Slow]", "State": "passed", "RunTime": 2000000000},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] LoadBalancers [Feature:LoadBalancer]"], "LeafNodeText": "should b", "State": "failed", "Failure": {"Message": "first\nsecond"}},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] LoadBalancers [Feature:LoadBalancer]"], "LeafNodeText": "should c", "State": "skipped", "Failure": {"Message": "too few nodes"}},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] LoadBalancers [Feature:LoadBalancer]"], "LeafNodeText": "should d", "State": "skipped"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] LoadBalancers [Feature:LoadBalancer]"], "LeafNodeText": "should handle load balancer cleanup finalizer for service [Slow]", "State": "skipped"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeText": "should e", "State": "passed"}
	]}]`))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	printTable(&out, results)
	got := strings.Join(strings.Fields(out.String()), " ")
	want := "passed 2s LoadBalancers should a " +
		"failed 0s LoadBalancers should b first " +
		"skipped 0s LoadBalancers should c too few nodes " +
		"not run 0s LoadBalancers should handle load balancer cleanup finalizer for service wants the finalizer "
	if !strings.HasPrefix(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := bad(results); n != 2 {
		t.Errorf("%d did not end as expected, want b and c: one failed, one skipped itself for a reason that we do not know", n)
	}
	if _, err := read([]byte(`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no API server"}}]}]`)); err == nil {
		t.Error("a suite that could not begin has no error")
	}
}
