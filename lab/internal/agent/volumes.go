package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// volumePatience is how long a node may not yet be allowed what belongs to a pod that was just bound to it: the API
// server learns of that by a watch of its own.
const volumePatience = 5 * time.Second

// wantsVolumes: those of programs that look at their file system, which the lab's own do not. What the API server
// mounts into every pod, the token of the ServiceAccount default, is of use to none of them either.
func wantsVolumes(obj *corev1.Pod) bool {
	return obj.Spec.ServiceAccountName != "" && obj.Spec.ServiceAccountName != "default"
}

// makeVolumes writes what the pod's volumes hold. They are written once: what changes later is not brought in.
func (p *pod) makeVolumes(ctx context.Context) error {
	if !wantsVolumes(p.obj) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, volumePatience)
	defer cancel()
	for {
		err := p.tryVolumes(ctx)
		if !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *pod) tryVolumes(ctx context.Context) error {
	for _, v := range p.obj.Spec.Volumes {
		dir := p.volumeDir(v.Name)
		if v.HostPath != nil {
			dir = p.hostPath(v.HostPath.Path)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		var err error
		switch {
		case v.ConfigMap != nil:
			err = p.configMap(ctx, dir, v.ConfigMap.Name)
		case v.Secret != nil:
			err = p.secret(ctx, dir, v.Secret)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if err == nil {
					err = p.projected(ctx, dir, s)
				}
			}
		case v.EmptyDir != nil, v.HostPath != nil:
		default:
			return fmt.Errorf("volume %s: the lab knows configMap, secret, projected, emptyDir and hostPath", v.Name)
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

func (p *pod) volumeDir(name string) string { return filepath.Join(p.dir(), "volumes", name) }

// hostPath is where a directory of the node is: nodes have no file system of their own but this.
func (p *pod) hostPath(path string) string {
	return filepath.Join(p.agent.cfg.Dir, "hosts", p.agent.cfg.Node, "files", path)
}

func (p *pod) configMap(ctx context.Context, dir, name string) error {
	cm, err := p.agent.client.CoreV1().ConfigMaps(p.rec.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for key, text := range cm.Data {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (p *pod) secret(ctx context.Context, dir string, v *corev1.SecretVolumeSource) error {
	secret, err := p.agent.client.CoreV1().Secrets(p.rec.Namespace).Get(ctx, v.SecretName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if v.DefaultMode != nil {
		mode = os.FileMode(*v.DefaultMode)
	}
	for key, data := range secret.Data {
		if err := os.WriteFile(filepath.Join(dir, key), data, mode); err != nil {
			return err
		}
	}
	return nil
}

// projected is one part of what a pod gets to log in with.
func (p *pod) projected(ctx context.Context, dir string, s corev1.VolumeProjection) error {
	switch {
	case s.ServiceAccountToken != nil:
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: s.ServiceAccountToken.ExpirationSeconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.rec.Name, UID: types.UID(p.rec.UID)},
		}}
		if a := s.ServiceAccountToken.Audience; a != "" {
			request.Spec.Audiences = []string{a}
		}
		token, err := p.agent.client.CoreV1().ServiceAccounts(p.rec.Namespace).CreateToken(ctx, p.obj.Spec.ServiceAccountName, request, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, s.ServiceAccountToken.Path), []byte(token.Status.Token), 0o600)
	case s.ConfigMap != nil:
		return p.configMap(ctx, dir, s.ConfigMap.Name)
	case s.DownwardAPI != nil:
		for _, item := range s.DownwardAPI.Items {
			value := ""
			if item.FieldRef != nil {
				value, _ = p.field(item.FieldRef.FieldPath)
			}
			if err := os.WriteFile(filepath.Join(dir, item.Path), []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("the lab knows tokens, configMaps and downwardAPI of what is projected")
}

// confinement is what comes in front of a container's program besides its network: its volumes, and no more
// capabilities than it may have.
func (p *pod) confinement(spec corev1.Container) []string {
	if !wantsVolumes(p.obj) {
		return nil
	}
	args := []string{"--scratch", filepath.Join(p.dir(), "scratch-"+spec.Name)}
	from := map[string]string{}
	for _, v := range p.obj.Spec.Volumes {
		from[v.Name] = p.volumeDir(v.Name)
		if v.HostPath != nil {
			from[v.Name] = p.hostPath(v.HostPath.Path)
		}
	}
	for _, m := range spec.VolumeMounts {
		args = append(args, "--bind", from[m.Name]+":"+m.MountPath)
	}
	sc := spec.SecurityContext
	if sc == nil {
		return args
	}
	if c := sc.Capabilities; c != nil && len(c.Drop) == 1 && c.Drop[0] == "ALL" {
		var names []string
		for _, name := range c.Add {
			names = append(names, string(name))
		}
		args = append(args, "--capabilities", strings.Join(names, ","))
	}
	if sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem {
		args = append(args, "--read-only")
	}
	return args
}

// apiServerEnv is how a program finds the API server of the cluster that it runs in.
func apiServerEnv() []string {
	return []string{"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443"}
}
