package cli

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gatehouse":       func() { os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr)) },
		"watch-and-panic": watchAndPanic,
	})
}

// Each script runs the real program.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			d := &answerer{asked: make(chan struct{})}
			d.server = httptest.NewServer(d)
			env.Defer(d.server.Close)
			env.Values["daemon"] = d
			address := d.server.Listener.Addr().String()
			_, port, err := net.SplitHostPort(address)
			env.Setenv("DAEMON", address)
			env.Setenv("DAEMON_PORT", port)
			names := []string{"NOWHERE", "ADMIN", "FRONT", "FRONT2", "FRONT3", "FRONT4"}
			for i, address := range freeAddrs(len(names)) {
				env.Setenv(names[i], address)
			}
			return err
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"big": writeBig, "serve": serve, "asked": asked, "fill": fill,
		},
	})
}

// answerer answers as a running gatehouse would.
type answerer struct {
	server *httptest.Server
	asked  chan struct{} // a send is an answer

	mu   sync.Mutex
	says []byte // nil: it is something else
}

func (d *answerer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	says := d.says
	d.mu.Unlock()
	if says == nil || r.URL.Path != "/status.json" && r.URL.Path != "/explain.json" {
		http.NotFound(w, r)
	} else {
		_, _ = w.Write(says)
	}
	select {
	case d.asked <- struct{}{}:
	default: // nobody waits
	}
}

var ago = regexp.MustCompile(`TIME-(\w+)`)

// serve makes the daemon say what is in a file: `serve FILE`, or not answer for
// a gatehouse: `serve nothing`. Times in it are as long ago as TIME-1h says. What
// it says is in said.json.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	d := ts.Value("daemon").(*answerer)
	var says []byte
	if args[0] != "nothing" {
		says = ago.ReplaceAllFunc([]byte(ts.ReadFile(args[0])), func(b []byte) []byte {
			before, err := time.ParseDuration(string(ago.FindSubmatch(b)[1]))
			ts.Check(err)
			return []byte(time.Now().Add(-before).Format(time.RFC3339Nano))
		})
		ts.Check(os.WriteFile(ts.MkAbs("said.json"), says, 0o600))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.says = says
}

// asked waits until the daemon was asked so often: `asked N`.
func asked(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	for range n {
		select {
		case <-ts.Value("daemon").(*answerer).asked:
		case <-time.After(10 * time.Second):
			ts.Fatalf("the daemon is not asked")
		}
	}
}

// fill replaces the names of variables in a file by what they are: `fill FILE`.
func fill(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(os.Expand(ts.ReadFile(file), ts.Getenv)), 0o600))
	}
}

// freeAddrs are different loopback addresses that nobody listens on.
func freeAddrs(n int) []string {
	var all []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		defer listener.Close() // once all are known, or one could come twice
		all = append(all, listener.Addr().String())
	}
	return all
}

// writeBig writes a file of 10 MiB: `big FILE`.
func writeBig(ts *testscript.TestScript, _ bool, args []string) {
	line := "# " + strings.Repeat("x", 61) + "\n"
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat(line, 10<<20/len(line))), 0o600))
}
