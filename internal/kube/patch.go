package kube

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/internal/edge"
)

// statusPatch is the body of a strategic merge patch of services/status that
// makes have what is wanted, and leaves what others have written there alone.
//
// The finalizer is in it as well: by way of the status the API server takes
// everything but the spec, and the service controllers of clouds put theirs on
// in this way. So one request does both, there is no time in which a Service
// has an address and no finalizer, and gatehouse needs no right to change
// Services themselves.
//
// Server-side apply could do no more: the list of addresses is atomic, and what
// others wrote into it would have to be forced away in any case.
//
// With exact it is refused if the Service has changed since.
func statusPatch(want edge.ServiceStatus, have *edge.Service, now time.Time, exact bool) []byte {
	type metadata struct {
		UID             string   `json:"uid"`
		ResourceVersion string   `json:"resourceVersion,omitempty"`
		Finalizers      []string `json:"finalizers,omitempty"`
		Released        []string `json:"$deleteFromPrimitiveList/finalizers,omitempty"`
	}
	type loadBalancer struct {
		Ingress []corev1.LoadBalancerIngress `json:"ingress"`
	}
	type status struct {
		LoadBalancer *loadBalancer    `json:"loadBalancer,omitempty"`
		Conditions   []conditionPatch `json:"conditions,omitempty"`
	}
	var patch struct {
		Metadata metadata `json:"metadata"`
		Status   status   `json:"status,omitzero"`
	}
	patch.Metadata.UID = want.UID
	if exact {
		patch.Metadata.ResourceVersion = have.ResourceVersion
	}
	switch finalizer := []string{Finalizer}; {
	case !sameFinalizer(want, have) && want.Finalizer:
		patch.Metadata.Finalizers = finalizer
	case !sameFinalizer(want, have):
		patch.Metadata.Released = finalizer
	}
	if !slices.EqualFunc(want.Ingress, have.Ingress, sameIngress) {
		patch.Status.LoadBalancer = &loadBalancer{ingressOf(want.Ingress)}
	}
	patch.Status.Conditions = conditionsPatch(want.Conditions, have.Conditions, now)
	body, err := json.Marshal(patch)
	if err != nil {
		panic(fmt.Sprintf("kube: status patch: %v", err)) // strings and numbers always marshal
	}
	return body
}

// conditionPatch is one condition in a strategic merge patch, which merges them
// by type.
type conditionPatch struct {
	Type    string                 `json:"type"`
	Status  metav1.ConditionStatus `json:"status,omitempty"`
	Reason  string                 `json:"reason,omitempty"`
	Message *string                `json:"message,omitempty"`
	// LastTransitionTime stays as it is where it is left out.
	LastTransitionTime *metav1.Time `json:"lastTransitionTime,omitempty"`
	Patch              string       `json:"$patch,omitempty"`
}

func conditionsPatch(want, have []edge.Condition, now time.Time) []conditionPatch {
	of := func(all []edge.Condition, condition string) int {
		return slices.IndexFunc(all, func(c edge.Condition) bool { return c.Type == condition })
	}
	var out []conditionPatch
	for _, c := range want {
		before := of(have, c.Type)
		if before >= 0 && have[before] == c {
			continue
		}
		p := conditionPatch{Type: c.Type, Status: metav1.ConditionFalse, Reason: c.Reason, Message: &c.Message}
		if c.True {
			p.Status = metav1.ConditionTrue
		}
		if before < 0 || have[before].True != c.True {
			p.LastTransitionTime = new(metav1.NewTime(now))
		}
		out = append(out, p)
	}
	for _, c := range have {
		if of(want, c.Type) < 0 {
			out = append(out, conditionPatch{Type: c.Type, Patch: "delete"})
		}
	}
	return out
}

func ingressOf(in []edge.Ingress) []corev1.LoadBalancerIngress {
	out := make([]corev1.LoadBalancerIngress, 0, len(in))
	for _, i := range in {
		e := corev1.LoadBalancerIngress{Hostname: i.Hostname}
		if i.IP.IsValid() {
			e.IP = i.IP.String()
			if i.Mode != "" {
				e.IPMode = new(corev1.LoadBalancerIPMode(i.Mode))
			}
		}
		for _, p := range i.Ports {
			port := corev1.PortStatus{Port: int32(p.Port), Protocol: corev1.Protocol(cmp.Or(p.Protocol, edge.TCP))}
			if p.Error != "" {
				port.Error = &p.Error
			}
			e.Ports = append(e.Ports, port)
		}
		out = append(out, e)
	}
	return out
}

// sameStatus says whether nothing is to be written.
func sameStatus(want edge.ServiceStatus, have *edge.Service) bool {
	return slices.EqualFunc(want.Ingress, have.Ingress, sameIngress) &&
		sameFinalizer(want, have) && sameConditions(want.Conditions, have.Conditions)
}

// sameConditions: those of a Service are sorted, and there are two at most.
func sameConditions(a, b []edge.Condition) bool {
	return len(a) == len(b) && (slices.Equal(a, b) || !slices.ContainsFunc(a, func(c edge.Condition) bool { return !slices.Contains(b, c) }))
}

// sameFinalizer: the API server takes no new finalizer on what is being deleted.
func sameFinalizer(want edge.ServiceStatus, have *edge.Service) bool {
	return want.Finalizer == have.Finalizer || want.Finalizer && have.Deleting
}

// sameIngress compares after the API's defaults.
func sameIngress(a, b edge.Ingress) bool {
	return a.IP == b.IP && a.Hostname == b.Hostname && modeOf(a) == modeOf(b) &&
		slices.EqualFunc(a.Ports, b.Ports, func(a, b edge.IngressPort) bool {
			return a.Port == b.Port && a.Error == b.Error && cmp.Or(a.Protocol, edge.TCP) == cmp.Or(b.Protocol, edge.TCP)
		})
}

func modeOf(i edge.Ingress) string {
	if !i.IP.IsValid() {
		return "" // refused by the API without an ip
	}
	return cmp.Or(i.Mode, string(corev1.LoadBalancerIPModeVIP))
}
