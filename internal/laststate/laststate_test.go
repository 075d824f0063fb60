package laststate

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// filler fills every field of a value with something that is not zero, each with
// something else.
type filler struct {
	t *testing.T
	n int
}

func (f *filler) fill(v reflect.Value, path string) {
	f.n++
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{10, 0, byte(f.n >> 8), byte(f.n)})
		if f.n%2 == 0 {
			*x = netip.MustParseAddr(fmt.Sprintf("fd00::%x", f.n))
		}
		return
	case *netip.AddrPort:
		*x = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd00::%x", f.n)), uint16(f.n))
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(f.n >> 8), byte(f.n)}), 24)
		return
	case *time.Time:
		*x = time.Unix(int64(1_800_000_000+f.n), int64(f.n)).UTC()
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("<%s %d> \u2028 \"", path, f.n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(f.n) << 32)
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(uint64(f.n % 256))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i), path)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key, path)
			f.fill(value, path)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() {
				f.t.Fatalf("%s.%s is not exported: it is not kept", path, field.Name)
			}
			f.fill(v.Field(i), path+"."+field.Name)
		}
	default:
		f.t.Fatalf("%s is a %s: how is that kept?", path, v.Type())
	}
}

func full(t *testing.T) State {
	t.Helper()
	var s State
	f := filler{t: t}
	f.fill(reflect.ValueOf(&s).Elem(), "State")
	return s
}

// Every field is kept, also one that is added later.
func TestNothingIsLostOnTheWay(t *testing.T) {
	empty := func() State { return State{Source: "here", SavedAt: time.Unix(1, 0).UTC()} }
	for name, s := range map[string]State{
		"every field": full(t),
		"no field":    empty(),
		"zero elements": func() State {
			s := empty()
			s.Cluster.Services = []edge.Service{{Ingress: []edge.Ingress{{}}, Endpoints: []edge.Endpoint{{}}, Ports: []edge.ServicePort{{}}}}
			s.Cluster.Nodes = []edge.Node{{Addrs: []netip.Addr{{}}, PodCIDRs: []netip.Prefix{{}}}}
			s.Cluster.APIServers = []netip.AddrPort{{}}
			s.Allocations = []Allocation{{}}
			return s
		}(),
		"empty is not nil": func() State {
			s := empty()
			s.Cluster.Namespaces = map[string]map[string]string{"bare": nil, "plain": {}}
			s.Cluster.Services = []edge.Service{{SourceRanges: []string{}, Annotations: map[string]string{}}}
			s.Cluster.Nodes = []edge.Node{}
			return s
		}(),
		"odd addresses": func() State {
			s := empty()
			s.Cluster.Nodes = []edge.Node{{
				Addrs:    []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fe80::1%eth0"), netip.IPv6Unspecified()},
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.7/24"), netip.MustParsePrefix("::/0")},
			}}
			return s
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "var", "state")
			if err := Save(dir, s); err != nil {
				t.Fatal(err)
			}
			got, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, s) {
				t.Errorf("got  %+v\nwant %+v", *got, s)
			}
		})
	}
}

func TestTheFileIsTheAdministrators(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	for range 2 {
		if err := Save(dir, full(t)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "cluster"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestNoStateIsNoError(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "nothing")} {
		if s, err := Load(dir); s != nil || err != nil {
			t.Errorf("%s: %v, %v", dir, s, err)
		}
	}
}

// frame makes a file of compressed JSON, with the right checksum.
func frame(header string, content []byte) []byte {
	return append(fmt.Appendf(nil, "%s sha256:%x\n", header, sha256.Sum256(content)), content...)
}

func compressed(text []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(text)
	_ = z.Close()
	return b.Bytes()
}

const v1 = "gatehouse-state 1"

func TestDamageIsSetAside(t *testing.T) {
	good, err := Encode(full(t))
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(good)
	changed[len(changed)-20] ^= 1
	small := []byte(`{"Source":"here","SavedAt":"2026-11-22T21:00:00Z"}`)
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":                               {nil, "does not begin with"},
		"half of it":                          {good[:len(good)/2], "checksum"},
		"one bit":                             {changed, "checksum"},
		"one byte more":                       {append(bytes.Clone(good), 0), "checksum"},
		"something else":                      {[]byte("#!/bin/sh\nexit\n"), "does not begin with"},
		"a line without an end":               {bytes.Repeat([]byte("gatehouse-state 1 "), 1000), "does not begin with"},
		"no checksum":                         {[]byte(v1 + "\n"), "does not begin with"},
		"a later version":                     {frame("gatehouse-state 2", compressed(small)), "it is of version 2, and this gatehouse reads version 1"},
		"a later version with another header": {[]byte("gatehouse-state 3\n"), "it is of version 3"},
		"not compressed":                      {frame(v1, small), "gzip"},
		"not JSON":                            {frame(v1, compressed([]byte("{]"))), "invalid character"},
		"another kind of JSON":                {frame(v1, compressed([]byte(`{"Cluster":{"Services":{}}}`))), "Cluster.Services"},
		"nothing in it":                       {frame(v1, compressed([]byte("{}"))), "of which cluster"},
		"two states":                          {frame(v1, compressed(append(small, small...))), "more in it"},
		"a cut stream":                        {frame(v1, compressed(small)[:20]), "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "cluster")
			if err := os.WriteFile(path, tc.data, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Load(dir)
			if s != nil || err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("got %v, %v; want %q of %s", s, err, tc.want, path)
			}
			aside, _ := filepath.Glob(filepath.Join(dir, "cluster.damaged-*"))
			if len(aside) != 1 || !strings.Contains(err.Error(), aside[0]) {
				t.Fatalf("set aside: %v; it says %v", aside, err)
			}
			if kept, _ := os.ReadFile(aside[0]); !bytes.Equal(kept, tc.data) {
				t.Error("what was set aside is not what was there")
			}
			if s, err := Load(dir); s != nil || err != nil {
				t.Errorf("a second time: %v, %v", s, err)
			}
		})
	}
}

// A small file may be a large one.
func TestSizeIsBounded(t *testing.T) {
	large := compressed(append([]byte(`{"Source":"`), bytes.Repeat([]byte("a"), 1<<20)...))
	if s, err := decompress(large, 1<<20); s != nil || !errors.Is(err, errTooLarge) {
		t.Errorf("compressed: %v, %v", s, err)
	}
	path := filepath.Join(t.TempDir(), "cluster")
	if err := os.WriteFile(path, []byte(v1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(filepath.Dir(path)); !errors.Is(err, errTooLarge) {
		t.Errorf("as it is: %v", err)
	}
}

func TestWhatCannotBeReadIsNotCalledDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "cluster"), 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(dir); s != nil || err == nil {
		t.Errorf("a directory in its place: %v, %v", s, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cluster")); err != nil {
		t.Error(err)
	}
	if err := Save(dir, full(t)); err == nil {
		t.Error("saved over a directory")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{file, filepath.Join(file, "state")} {
		if err := Save(in, full(t)); err == nil {
			t.Errorf("saved in %s", in)
		}
	}
}

// Whatever is in the file, it is an error, or a state that is kept as well as
// any other.
func FuzzLastState(f *testing.F) {
	s := State{
		Source: "here", SavedAt: time.Unix(1_800_000_000, 0).UTC(),
		Cluster: edge.Cluster{
			Services:   []edge.Service{{Namespace: "shop", Name: "web", Created: time.Unix(1, 2).UTC(), Ingress: []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.1")}}}},
			Nodes:      []edge.Node{{Name: "w1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}}},
			Namespaces: map[string]map[string]string{"shop": {"a": "b"}},
		},
		Allocations: []Allocation{{Allocation: edge.Allocation{Addr: netip.MustParseAddr("10.0.0.1"), Held: true}, Left: time.Unix(3, 0).UTC()}},
	}
	data, err := Encode(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, 0)
	_, content, _ := bytes.Cut(data, []byte("\n"))
	f.Add(content, 1)
	f.Add([]byte(`{"Source":"here","SavedAt":"2026-11-22T21:00:00+01:00","Cluster":{"Services":[{"Created":"2026-11-22T21:00:00Z","Endpoints":[{"Addr":"[fd00::1]:80"}]}]}}`), 2)
	f.Fuzz(func(t *testing.T, data []byte, framed int) {
		switch framed % 3 {
		case 1:
			data = frame(v1, data)
		case 2:
			data = frame(v1, compressed(data))
		}
		s, err := Decode(data)
		if err != nil {
			if s != nil {
				t.Error("both a state and an error")
			}
			return
		}
		again, err := Encode(*s)
		if err != nil {
			t.Fatalf("it cannot be saved again: %v", err)
		}
		twice, err := Decode(again)
		if err != nil {
			t.Fatalf("it cannot be read again: %v", err)
		}
		if third, _ := Encode(*twice); !bytes.Equal(third, again) {
			t.Error("it changes when it is saved again")
		}
	})
}
