package ports

import "e13.dev/gatehouse/internal/edge"

// Taken returns the doors whose packets a socket of another program would get,
// with the words of the error that listening there would end in. This process's
// own sockets do not count, nor do those of ours.
func Taken(doors []edge.Door, ours []int) (map[edge.Door]string, error) {
	return nil, nil
}
