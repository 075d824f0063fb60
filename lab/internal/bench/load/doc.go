// Package load is the load generator of the benchmark: the client, and the backend that it reaches through what is
// measured. Each is one process with one thread, raw sockets and one epoll set, because it shares the processors with
// what it measures: what the generator saves, the contender can use, and a rate then says more about the contender.
// So it neither allocates nor asks the Go scheduler for anything while it runs, discards bulk data in the kernel
// (MSG_TRUNC), sends it without a copy (vmsplice, splice) and moves datagrams in batches (recvmmsg, sendmmsg).
//
// Both tell how far they are through Counters, memory that they share with whoever started them; nothing is said over
// a pipe while it is measured. They run until they are killed.
//
//	load.Client(load.Options{Mode: load.PingPong, Targets: targets, Conns: 64}, counters)
package load
