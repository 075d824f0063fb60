package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"e13.dev/gatehouse/deploy"
	"e13.dev/gatehouse/internal/kube"
)

// onTheBox is where the file goes, by the unit of systemd and by init.
const onTheBox = "/etc/gatehouse/kubeconfig"

func newKubeconfig() *cobra.Command {
	var k kubeconfigCommand
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Give gatehouse its rights in the cluster, and write the kubeconfig for the box",
		Long: `kubeconfig is for an administrator of the cluster, on any machine that reaches it. It
applies what deploy/rbac.yaml says: the namespace and ServiceAccount gatehouse, the
rights that it needs, an admission policy that holds it to them, and a token that does
not expire. Then it writes a kubeconfig with that token and the certificate authority
in it, and asks the API server what the token may do, and what it may not.

It can be run again at any time: what is there already stays, with the same token. What
is applied belongs to the field manager gatehouse-install, which overrules other
managers of the same fields. Admission policies came with Kubernetes 1.30: on an older
cluster they are left out, and gatehouse works without.

With --rotate the token is a new one, and the old one is revoked: a gatehouse that has
it serves what it knows until the new file is in its place, which it reads by itself.

The file is for the box alone: whoever has it has gatehouse's rights. It is written with
mode 0600, and goes to standard output without -o.`,
		Example: `  # with the login of kubectl; the box reaches the API server at 10.0.0.10
  gatehouse kubeconfig --server https://10.0.0.10:6443 -o edge.kubeconfig
  # straight to the box
  gatehouse kubeconfig --server https://10.0.0.10:6443 | ssh root@edge 'install -o gatehouse -m 600 /dev/stdin /etc/gatehouse/kubeconfig'
  # what would be applied, as YAML; and how to take it away again
  gatehouse kubeconfig --dry-run
  gatehouse kubeconfig --dry-run | kubectl delete -f -`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			k.out, k.say = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return k.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&k.admin.Kubeconfig, "kubeconfig", "", "the administrator's kubeconfig `FILE`; default: KUBECONFIG, then ~/.kube/config")
	f.StringVar(&k.admin.Context, "context", "", "the context `NAME` of that file; default: its current one")
	f.StringVar(&k.server, "server", "", "the `URL` of the API server as the box reaches it (https://10.0.0.10:6443); default: the administrator's")
	f.StringVarP(&k.file, "output", "o", "", "write this `FILE`; default: standard output")
	f.BoolVar(&k.force, "force", false, "write over a file that is there")
	f.BoolVar(&k.dryRun, "dry-run", false, "print what would be applied, with what that would change, and change nothing")
	f.BoolVar(&k.rotate, "rotate", false, "make a new token, and revoke the one that there is")
	return cmd
}

type kubeconfigCommand struct {
	admin                 kube.AdminOptions
	server, file          string
	force, dryRun, rotate bool

	out, say io.Writer
}

func (k *kubeconfigCommand) run(ctx context.Context) error {
	if k.dryRun && k.rotate {
		return usageError{errors.New("--dry-run and --rotate: give one of them")}
	}
	// What the command line can be blamed for comes before any change.
	if !k.dryRun {
		if err := mayWrite(k.file, k.force); err != nil {
			return err
		}
	}
	if err := kube.CheckServer(k.server); k.server != "" && err != nil {
		return usageError{fmt.Errorf("--server: %w", err)}
	}
	all, err := kube.Manifests(deploy.RBAC)
	if err != nil {
		return err
	}
	k.admin.UserAgent = "gatehouse/" + Version
	admin, err := kube.NewAdmin(k.admin)
	if err != nil {
		return err
	}
	if k.dryRun {
		return k.tellOnly(ctx, admin, all)
	}
	if err := kube.CheckServer(admin.ServerURL()); k.server == "" && err != nil {
		return fmt.Errorf("the server of the administrator's kubeconfig is not for the box: %w; say with --server URL where the box reaches it", err)
	}
	secret := all[slices.IndexFunc(all, func(m kube.Manifest) bool { return m.Kind == "Secret" })]
	if k.rotate {
		if err := admin.Delete(ctx, secret); err != nil {
			return err
		}
		fmt.Fprintf(k.say, "%s: the token that there was is revoked\n", secret.Object())
	}
	skipped := false
	err = admin.Apply(ctx, all, false, func(a kube.Applied) {
		fmt.Fprintf(k.say, "%s %s\n", a.Object, a.Did)
		skipped = skipped || a.Did == kube.Skipped
	})
	if err != nil {
		return err
	}
	if skipped {
		fmt.Fprintln(k.say, "This API server is older than Kubernetes 1.30 and has no admission policies: nothing but gatehouse itself "+
			"sees to it that it changes no labels, annotations and foreign finalizers of Services.")
	}
	token, err := admin.Token(ctx, secret, func() {
		fmt.Fprintln(k.say, "waiting for the control plane to fill in the token")
	})
	if err != nil {
		return err
	}
	text, warnings, err := admin.Kubeconfig(token, k.server)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintln(k.say, "warning: "+w)
	}
	if k.file == "" {
		if _, err := k.out.Write(text); err != nil {
			return err
		}
	} else {
		if err := writeNew(k.file, text, 0o600, k.force); err != nil {
			return err
		}
		fmt.Fprintf(k.say, "wrote %s, for gatehouse alone to read\n", k.file)
	}
	wanted, err := kube.RightsOf(all)
	if err != nil {
		return err
	}
	rights, err := admin.Rights(ctx, token, wanted)
	if err != nil {
		return err
	}
	if err := k.tellRights(rights); err != nil {
		return err
	}
	k.tellNext()
	return nil
}

// tellOnly prints the objects as they can be applied or deleted with kubectl.
func (k *kubeconfigCommand) tellOnly(ctx context.Context, admin *kube.Admin, all []kube.Manifest) error {
	i := 0
	err := admin.Apply(ctx, all, true, func(a kube.Applied) {
		would := map[string]string{kube.Created: "would be created", kube.Changed: "would be changed", kube.Unchanged: "is there already", kube.Skipped: "would be left out: this API server does not know it"}[a.Did]
		if i > 0 {
			fmt.Fprintln(k.out, "---")
		}
		fmt.Fprintf(k.out, "# %s %s\n%s\n", a.Object, would, strings.TrimSpace(string(all[i].YAML)))
		i++
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(k.say, "nothing was changed at %s\n", admin.ServerURL())
	return nil
}

// tellRights prints what the token may do and what it may not. Too little is a
// no; too much is granted by somebody else.
func (k *kubeconfigCommand) tellRights(rights []kube.Right) error {
	var lacking, extra []string
	may, mayNot := newVerbs(), newVerbs()
	for _, r := range rights {
		switch {
		case r.Wanted && !r.Granted:
			lacking = append(lacking, r.String())
		case !r.Wanted && r.Granted:
			extra = append(extra, r.String())
		case r.Wanted:
			may.add(r)
		default:
			mayNot.add(r)
		}
	}
	w := tabwriter.NewWriter(k.say, 0, 0, 2, ' ', 0)
	for i, line := range may.lines() {
		fmt.Fprintf(w, "%s\t%s\n", first(i, "the token may"), line)
	}
	for i, line := range mayNot.lines() {
		fmt.Fprintf(w, "%s\t%s\n", first(i, "and may not"), line)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(extra) > 0 {
		fmt.Fprintf(k.say, "warning: it may also %s, which gatehouse does not need: another binding in the cluster gives that to system:serviceaccount:gatehouse:gatehouse, "+
			"or to all ServiceAccounts; kubectl get clusterrolebindings -o wide shows them\n", strings.Join(extra, ", "))
	}
	if len(lacking) > 0 {
		fmt.Fprintf(k.say, "the token may not %s, which gatehouse needs, though ClusterRole and ClusterRoleBinding gatehouse are there: "+
			"is the API server started with --authorization-mode=…,RBAC?\n", strings.Join(lacking, ", "))
		return errNo
	}
	return nil
}

func first(i int, s string) string {
	if i > 0 {
		return ""
	}
	return s
}

// verbs gathers rights: one line per resource, and resources with the same verbs together.
type verbs struct {
	order []string
	of    map[string][]string // verbs by resource
}

func newVerbs() *verbs { return &verbs{of: map[string][]string{}} }

func (v *verbs) add(r kube.Right) {
	if v.of[r.Resource] == nil {
		v.order = append(v.order, r.Resource)
	}
	v.of[r.Resource] = append(v.of[r.Resource], r.Verb)
}

func (v *verbs) lines() (lines []string) {
	var keys []string
	together := map[string][]string{}
	for _, resource := range v.order {
		key := strings.Join(v.of[resource], ", ")
		if together[key] == nil {
			keys = append(keys, key)
		}
		together[key] = append(together[key], resource)
	}
	for _, key := range keys {
		lines = append(lines, key+" "+strings.Join(together[key], ", "))
	}
	return lines
}

func (k *kubeconfigCommand) tellNext() {
	fmt.Fprintln(k.say, "\nNext:")
	if k.file != "" {
		fmt.Fprintf(k.say, "  ssh root@BOX 'install -o gatehouse -m 600 /dev/stdin %s' <%s     for the user that gatehouse runs as; then delete it here: its token does not expire\n", onTheBox, k.file)
	}
	fmt.Fprintf(k.say, "  gatehouse init --kubeconfig %s -o /etc/gatehouse/gatehouse.yaml     on the box, if it has no configuration yet\n", onTheBox)
	fmt.Fprintln(k.say, "  gatehouse plan -c /etc/gatehouse/gatehouse.yaml     there, to see what would be open")
}
