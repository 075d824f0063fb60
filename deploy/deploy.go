// Package deploy holds what is put into a cluster for gatehouse. The files
// beside it are for kubectl and helm; the program has them as well, so that an
// administrator needs nothing but it.
package deploy

import _ "embed" // of files

// RBAC is rbac.yaml: the rights, the token for a box outside of the cluster, and
// the policy that holds gatehouse to them.
//
//go:embed rbac.yaml
var RBAC []byte
