package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
)

// installer is the field manager of what Apply writes.
const installer = "gatehouse-install"

// What Apply did with an object, or would do.
const (
	Created   = "created"
	Changed   = "changed"
	Unchanged = "unchanged"
	Skipped   = "skipped" // the API server does not know the kind
)

// Manifest is one object of a file.
type Manifest struct {
	YAML []byte
	head
}

type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

// Applied is what was done with an object.
type Applied struct {
	Object string // "clusterrole/gatehouse"
	Did    string // Created, Changed, Unchanged or Skipped
}

// resources are the kinds that may be in a file.
var resources = map[string]string{
	"v1 Namespace":      "namespaces",
	"v1 ServiceAccount": "serviceaccounts",
	"v1 Secret":         "secrets",
	"rbac.authorization.k8s.io/v1 ClusterRole":                         "clusterroles",
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding":                  "clusterrolebindings",
	"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy":        "validatingadmissionpolicies",
	"admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}

// Manifests takes a file apart.
func Manifests(file []byte) ([]Manifest, error) {
	var all []Manifest
	documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(file)))
	defer func() { _ = documents.Close() }()
	buf := make([]byte, len(file)+1)
	for {
		n, err := documents.Read(buf)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		m := Manifest{YAML: bytes.Clone(buf[:n])}
		if err := yaml.Unmarshal(m.YAML, &m.head); err != nil {
			return nil, err
		}
		if resources[m.APIVersion+" "+m.Kind] == "" {
			return nil, fmt.Errorf("no manifest of a kind that is known: %s %s", m.APIVersion, m.Kind)
		}
		all = append(all, m)
	}
}

// Object is how kubectl would call it.
func (m Manifest) Object() string { return strings.ToLower(m.Kind) + "/" + m.Metadata.Name }

func (m Manifest) groupPath() string {
	if !strings.Contains(m.APIVersion, "/") {
		return "/api/" + m.APIVersion
	}
	return "/apis/" + m.APIVersion
}

func (m Manifest) resource() string { return resources[m.APIVersion+" "+m.Kind] }

func (m Manifest) path() string {
	path := m.groupPath()
	if ns := m.Metadata.Namespace; ns != "" {
		path += "/namespaces/" + ns
	}
	return path + "/" + m.resource() + "/" + m.Metadata.Name
}

// Apply makes the objects what the file says, or with dryRun says what that
// would change; it tells of each as soon as that is done. What others have
// written in other fields stays. Kinds that this API server does not have are
// skipped if they are admission policies, which it has since Kubernetes 1.30.
func (a *Admin) Apply(ctx context.Context, all []Manifest, dryRun bool, tell func(Applied)) error {
	served := map[string][]string{} // resources by group path
	for _, m := range all {
		known, asked := served[m.groupPath()]
		if !asked {
			var err error
			if known, err = a.resourcesOf(ctx, m.groupPath()); err != nil {
				return a.fail("ask what the API server knows of "+m.APIVersion, err)
			}
			served[m.groupPath()] = known
		}
		if !slices.Contains(known, m.resource()) {
			if !strings.HasPrefix(m.Kind, "ValidatingAdmissionPolicy") {
				return fmt.Errorf("kube: the API server %s knows no %s: is it Kubernetes?", a.server(), m.resource())
			}
			tell(Applied{m.Object(), Skipped})
			continue
		}
		did, err := a.applyOne(ctx, m, dryRun)
		if err != nil {
			return a.fail("apply "+m.Object(), err)
		}
		tell(Applied{m.Object(), did})
	}
	return nil
}

func (a *Admin) resourcesOf(ctx context.Context, groupPath string) ([]string, error) {
	var list metav1.APIResourceList
	err := a.get(ctx, groupPath, &list)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	names := make([]string, 0, len(list.APIResources))
	for _, r := range list.APIResources {
		names = append(names, r.Name)
	}
	return names, err
}

func (a *Admin) applyOne(ctx context.Context, m Manifest, dryRun bool) (string, error) {
	var before, after map[string]any
	err := a.get(ctx, m.path(), &before)
	fresh := apierrors.IsNotFound(err)
	if err != nil && !fresh {
		return "", err
	}
	if fresh && dryRun {
		return Created, nil // its namespace may be as new as it is
	}
	request := a.conn.core.Patch(types.ApplyYAMLPatchType).AbsPath(m.path()).
		Param("fieldManager", installer).Param("force", "true").
		SetHeader("Accept", "application/json").Body(m.YAML)
	if dryRun {
		request.Param("dryRun", metav1.DryRunAll)
	}
	data, err := raw(request.Do(ctx))
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(data, &after); err != nil {
		return "", err
	}
	switch {
	case fresh:
		return Created, nil
	case reflect.DeepEqual(content(before), content(after)):
		return Unchanged, nil
	default:
		return Changed, nil
	}
}

// content is an object without what says who has written it when.
func content(object map[string]any) map[string]any {
	if meta, ok := object["metadata"].(map[string]any); ok {
		for _, key := range []string{"managedFields", "resourceVersion", "generation"} {
			delete(meta, key)
		}
	}
	return object
}

// Token is what a box logs in with.
type Token struct {
	Text string
	CA   []byte // the cluster's own certificate authority, PEM
}

const (
	tokenPatience = 30 * time.Second
	tokenInterval = 200 * time.Millisecond
	waitingAfter  = 2 * time.Second // it is said that it takes a while
)

// Token is what the control plane has filled into a Secret, once it has; waiting
// is called if that takes a while.
func (a *Admin) Token(ctx context.Context, m Manifest, waiting func()) (Token, error) {
	start := time.Now()
	said := false
	for {
		var secret corev1.Secret
		if err := a.get(ctx, m.path(), &secret); err != nil {
			return Token{}, a.fail("read "+m.Object(), err)
		}
		if text := secret.Data[corev1.ServiceAccountTokenKey]; len(text) > 0 {
			return Token{Text: string(text), CA: secret.Data[corev1.ServiceAccountRootCAKey]}, nil
		}
		waited := time.Since(start)
		if waited >= tokenPatience {
			return Token{}, fmt.Errorf("kube: the Secret %s/%s has no token after %s: see that kube-controller-manager runs, which fills it in, and try again",
				m.Metadata.Namespace, m.Metadata.Name, tokenPatience)
		}
		if waited >= waitingAfter && !said {
			said = true
			waiting()
		}
		select {
		case <-ctx.Done():
			return Token{}, ctx.Err()
		case <-time.After(tokenInterval):
		}
	}
}

// Delete removes an object, if it is there. Of the Secret with the token that
// revokes it.
func (a *Admin) Delete(ctx context.Context, m Manifest) error {
	err := a.conn.core.Delete().AbsPath(m.path()).SetHeader("Accept", "application/json").Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return a.fail("delete "+m.Object(), err)
	}
	return nil
}

func (a *Admin) get(ctx context.Context, path string, into any) error {
	data, err := raw(a.conn.core.Get().AbsPath(path).SetHeader("Accept", "application/json").Do(ctx))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// raw is an answer as it came. (Result.Raw alone has no words of the API server
// about what it refuses.)
func raw(result rest.Result) ([]byte, error) {
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

// fail says what an administrator can do about it.
func (a *Admin) fail(doing string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	p := a.explain(doing, err)
	switch {
	case apierrors.IsUnauthorized(err):
		p.Remedy = "log in anew, or name another kubeconfig with --kubeconfig FILE"
	case apierrors.IsForbidden(err):
		p.Remedy = "this takes the rights of an administrator of the cluster (cluster-admin): name such a login with --kubeconfig FILE and --context NAME"
	}
	return fmt.Errorf("kube: %s; %s", p.What, p.Remedy)
}
