package kube

// Server is the address of the API server that a kubeconfig leads to (empty:
// in-cluster, then KUBECONFIG). It asks nobody.
func Server(kubeconfig string) (string, error) {
	s, err := loadSource(kubeconfig)
	if err != nil {
		return "", err
	}
	return s.server(), nil
}

// Server is the address of the API server that is asked now.
func (c *Client) Server() string { return c.conn.Load().server() }
