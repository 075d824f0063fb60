package build

import "testing"

func TestWhatWasMadeIsShownAsItIsCalledInTheRoot(t *testing.T) {
	for _, c := range []struct{ root, out, want string }{
		{"..", "../dist", "dist/x.deb"},
		{"/src", "/src/dist", "dist/x.deb"},
		{"..", "/tmp/out", "/tmp/out/x.deb"},
		{"/src", "/tmp/out", "/tmp/out/x.deb"},
	} {
		if got := Shown(c.root, c.out, "x.deb"); got != c.want {
			t.Errorf("Shown(%q, %q) = %q, want %q", c.root, c.out, got, c.want)
		}
	}
	for n, want := range map[int]string{712: "0.7 kB", 26_303: "26.3 kB", 10_499_350: "10.5 MB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}
