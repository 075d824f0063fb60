#!/bin/sh
# Prints a kubeconfig for gatehouse on a box outside of the cluster, with the
# token of the Secret that deploy/rbac.yaml makes. It asks the cluster that
# kubectl is set to.
#
#   deploy/kubeconfig.sh [-s SERVER] [kubectl options] > kubeconfig
#
#   -s SERVER   the API server as the box reaches it, if that is not as kubectl
#               does: https://10.0.0.10:6443
#
# Options such as --kubeconfig FILE or --context NAME are handed to kubectl.
set -eu

namespace=gatehouse
secret=gatehouse-token

die() {
	echo "kubeconfig.sh: $*" >&2
	exit 1
}

server=
if [ "${1-}" = -h ] || [ "${1-}" = --help ]; then
	sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"
	exit 0
fi
if [ "${1-}" = -s ]; then
	[ $# -ge 2 ] || die "-s needs a server, such as https://10.0.0.10:6443"
	server=$2
	shift 2
fi

# field prints one field of the cluster that kubectl talks to.
field() {
	path=$1
	shift
	kubectl "$@" config view --raw --minify --flatten -o "jsonpath={.clusters[0].cluster.$path}"
}

# of_secret prints one field of the Secret, as base64.
of_secret() {
	path=$1
	shift
	kubectl "$@" --namespace "$namespace" get secret "$secret" -o "jsonpath={.data.$path}"
}

token=$(of_secret token "$@") || die "no Secret $namespace/$secret; kubectl apply -f deploy/rbac.yaml makes it"
tries=0
while [ -z "$token" ]; do # the control plane fills it in a moment after it was made
	tries=$((tries + 1))
	[ "$tries" -le 30 ] || die "the Secret $namespace/$secret has no token after 30 s; is kube-controller-manager running?"
	sleep 1
	token=$(of_secret token "$@")
done
token=$(printf %s "$token" | base64 -d)

# The authority that kubectl trusts for this server comes first: behind a load
# balancer it need not be the cluster's own.
ca=$(field certificate-authority-data "$@")
[ -n "$ca" ] || ca=$(of_secret 'ca\.crt' "$@")
name=$(field tls-server-name "$@")
[ -n "$server" ] || server=$(field server "$@")
[ -n "$server" ] || die "kubectl names no server; give one with -s"
case $server in
*://localhost[:/]* | *://127.*) echo "kubeconfig.sh: $server is this machine; if the box is another one, name the server with -s" >&2 ;;
esac

cat <<EOF
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster:
      server: $server
      certificate-authority-data: $ca
EOF
[ -z "$name" ] || echo "      tls-server-name: $name"
cat <<EOF
users:
  - name: gatehouse
    user:
      token: $token
contexts:
  - name: gatehouse
    context:
      cluster: cluster
      user: gatehouse
current-context: gatehouse
EOF
