// Package soak puts a gatehouse under every kind of load at once for as long as one likes, at a rate that a machine
// with other things to do hardly feels, and says afterwards whether anything was left behind: descriptors,
// goroutines, memory, connections. It also counts what clients saw: of backends that are always there, no connection
// may fail, and no byte may be wrong.
//
// Three hosts stand in a row, as network namespaces: a client, the edge with gatehouse, and backends. Client and
// backends are processes of their own, which Child runs; they are this program, started again.
//
//	result, err := soak.Run(ctx, soak.Options{Gatehouse: "bin/gatehouse", Dir: dir, Duration: time.Hour, Log: os.Stdout})
//	ok := result.Verdict(os.Stdout)
package soak
