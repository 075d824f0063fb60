// Package site owns a lab: a whole site made of network namespaces on one machine, with a real Kubernetes
// control plane in it. It makes and removes the namespaces and cables, the keys and kubeconfigs, and starts,
// stops and watches the programs. What runs inside a pod, and the agent that starts it, are in
// e13.dev/gatehouse/lab/internal; the programs of Kubernetes come from the labkube executable.
//
// A test uses it so:
//
//	s, err := site.Up(ctx, site.Options{Name: "e2e", Progress: os.Stderr})
//	if err != nil { ... }
//	defer s.Down(context.Background())
//	out, err := s.Exec(ctx, "home1", "curl", "-s", "http://10.11.12.32/")
//
// Everything that a lab makes carries its name: network namespaces ghlab-NAME-HOST, state under
// /dev/shm/gatehouse-lab/NAME. All addresses live inside the namespaces, so any number of labs can be up at
// once. Down needs nothing but the name: it works after a crash and after half an Up.
package site
