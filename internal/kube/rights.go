package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
)

// Right is one thing that a login may do, or may not.
type Right struct {
	Verb     string
	Group    string // empty: the core group
	Resource string // "services/status"
	Wanted   bool   // gatehouse needs it
	Granted  bool
}

func (r Right) String() string { return r.Verb + " " + r.Resource }

// beyond are rights that somebody who has stolen the token would look for.
var beyond = []Right{
	{Verb: "get", Resource: "secrets"},
	{Verb: "list", Resource: "secrets"},
	{Verb: "list", Resource: "configmaps"},
	{Verb: "list", Resource: "pods"},
	{Verb: "create", Resource: "pods"},
	{Verb: "create", Resource: "pods/exec"},
	{Verb: "create", Resource: "services"},
	{Verb: "update", Resource: "services"},
	{Verb: "patch", Resource: "services"},
	{Verb: "delete", Resource: "services"},
	{Verb: "patch", Resource: "nodes"},
	{Verb: "patch", Resource: "namespaces"},
	{Verb: "patch", Group: "discovery.k8s.io", Resource: "endpointslices"},
	{Verb: "create", Resource: "serviceaccounts/token"},
	{Verb: "impersonate", Resource: "users"},
	{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
	{Verb: "delete", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies"},
}

// RightsOf are those that the ClusterRoles among the objects grant.
func RightsOf(all []Manifest) ([]Right, error) {
	var rights []Right
	for _, m := range all {
		if m.Kind != "ClusterRole" {
			continue
		}
		var role struct {
			Rules []struct{ APIGroups, Resources, Verbs []string }
		}
		if err := yaml.Unmarshal(m.YAML, &role); err != nil {
			return nil, err
		}
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						rights = append(rights, Right{Verb: verb, Group: group, Resource: resource, Wanted: true})
					}
				}
			}
		}
	}
	return rights, nil
}

// rightsPatience is for the API server to notice a new role.
const rightsPatience = 5 * time.Second

// Rights asks the API server, with the token, which of the wanted rights it
// grants, and which of those that nobody wants. It waits a moment for wanted
// ones.
func (a *Admin) Rights(ctx context.Context, token Token, wanted []Right) ([]Right, error) {
	src := a.source
	src.config = rest.AnonymousClientConfig(a.config)
	src.config.BearerToken = token.Text
	conn, err := a.connectAs(src)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	all := slices.Concat(wanted, beyond)
	for i := range all {
		for {
			if err := ask(ctx, conn, &all[i]); err != nil {
				p := src.explain("ask for the rights of the token", err)
				return nil, fmt.Errorf("kube: %s; %s", p.What, p.Remedy)
			}
			if all[i].Granted || !all[i].Wanted || time.Since(start) > rightsPatience {
				break
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(tokenInterval):
			}
		}
	}
	return all, nil
}

func ask(ctx context.Context, conn *connection, r *Right) error {
	resource, subresource, _ := strings.Cut(r.Resource, "/")
	question := authorizationv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: r.Verb, Group: r.Group, Resource: resource, Subresource: subresource,
		}},
	}
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	data, err := raw(conn.core.Post().AbsPath("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").
		SetHeader("Accept", "application/json").SetHeader("Content-Type", "application/json").Body(body).Do(ctx))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &question); err != nil {
		return err
	}
	r.Granted = question.Status.Allowed
	return nil
}
