package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// The page is loaded once, and follows what happens from then on.
func TestStatusPage(t *testing.T) {
	const port = 8980
	ns := "shop"
	makeNamespace(t, ns)
	toPods := func(manifest string) string {
		return strings.Replace(manifest, "annotations: {", "annotations: {gatehouse.e13.dev/target: pod, gatehouse.e13.dev/health-interval: 1s, ", 1)
	}
	apply(t, deployment(ns, "web-1", "web", "w1", 1)+deployment(ns, "web-2", "web", "w2", 2)+deployment(ns, "web-3", "web", "w3", 3)+
		toPods(service(ns, "api", "web", "home", "Local", port)))
	awaitPods(t, ns, "web-1", "web-2", "web-3")
	eventually(t, 10*time.Second, "api is open", opened("home1", fmt.Sprintf("%s:%d", homeAddr, port)))

	b := openTab(t)
	b.see("")
	b.comes(5*time.Second, "the page is live", `document.getElementById("live").textContent == "live" && !document.getElementById("live").hidden`)
	is[bool](b, `window.sameDocument = true`)
	card := func(name string) string {
		return fmt.Sprintf(`[...document.querySelectorAll("article")].find(a => a.querySelector("h3").textContent == %q)`, name)
	}

	t.Run("small and alone", func(t *testing.T) { b.smallAndAlone(t) })
	t.Run("a Service appears", func(t *testing.T) {
		b.t = t
		name := fmt.Sprintf("%s/web:%d", ns, port+1)
		if is[bool](b, card(name)+" !== undefined") {
			t.Fatal("it is there already")
		}
		apply(t, service(ns, "web", "web", "home,internet", "Local", port+1))
		b.comes(5*time.Second, "its card", card(name)+` !== undefined`)
		// It is not allowed on the Internet, and that is a problem with a remedy.
		closed := fmt.Sprintf(`document.getElementById("refused").innerText.includes(%q) && document.getElementById("picture").querySelector(".line.bad") !== null`, ns+"/web")
		problem := fmt.Sprintf(`document.getElementById("problems").innerText.includes(%q)`, "service/"+ns+"/web")
		b.comes(5*time.Second, "why it is not on the Internet", closed+" && "+problem)
		title := is[string](b, "document.title")
		if !strings.HasPrefix(title, "(") {
			t.Errorf("the title is %q", title)
		}
		kubectl(t, "annotate", "service", "-n", ns, "web", "--overwrite", "gatehouse.e13.dev/zones=home")
		b.comes(5*time.Second, "the problem clears", "!("+problem+") && !document.getElementById(\"refused\").innerText.includes(\""+ns+"/web\")")
		kubectl(t, "delete", "service", "-n", ns, "web")
		b.comes(5*time.Second, "its card goes", card(name)+` === undefined`)
	})
	t.Run("traffic", func(t *testing.T) {
		b.t = t
		l := startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, port), 40)
		defer l.finish(t)
		api := card(fmt.Sprintf("%s/api:%d", ns, port))
		b.comes(20*time.Second, "rates and shares", fmt.Sprintf(`(t => t.includes("as even as chance allows") && !t.includes("not yet") && %s.querySelectorAll(".got").length == 6)(%s.innerText)`, api, api))
		b.comes(5*time.Second, "a busy line", `document.querySelector("#picture .wide .busy") !== null`)
	})
	t.Run("a pod dies", func(t *testing.T) {
		b.t = t
		api := card(fmt.Sprintf("%s/api:%d", ns, port))
		pod := kubectl(t, "get", "pods", "-n", ns, "-l", "part=web-1", "-o", "jsonpath={.items[0].metadata.name}")
		// Focus is not lost when what is around it changes.
		is[bool](b, api+`.querySelector("h3 a").focus() === undefined`)
		edgeNft(t, fmt.Sprintf("table inet e2e { chain out { type filter hook output priority filter; ip daddr %s tcp dport 8080 reject with tcp reset; }; }", podIPOn(t, ns, "web", "w1")))
		b.comes(10*time.Second, "it is down", fmt.Sprintf(`%s.className.includes("wrong") && /✕ down[^]*refused/.test(%s.innerText) && document.querySelector("#picture .wide .pod.down") !== null`, api, api))
		noEdgeNft(t)
		b.comes(10*time.Second, "it is up again", fmt.Sprintf(`!%s.className.includes("wrong") && document.querySelector("#picture .pod.down") === null`, api))
		kubectl(t, "delete", "pod", "-n", ns, pod, "--grace-period=0", "--force")
		b.comes(20*time.Second, "another one is in its place", fmt.Sprintf(`(t => !t.includes(%q) && t.includes("web-1-"))(%s.innerText)`, pod, api))
		if !is[bool](b, `document.activeElement === `+api+`.querySelector("h3 a")`) {
			t.Error("the focus was lost")
		}
	})
	if !is[bool](b, `window.sameDocument === true`) {
		t.Error("the page was loaded again meanwhile")
	}
	t.Run("filter", func(t *testing.T) {
		b.t = t
		b.do(chromedp.SendKeys(chromedp.CSS("#q"), "no such thing"))
		b.comes(5*time.Second, "nothing matches", `document.getElementById("tally").innerText.includes("0 of") && document.querySelectorAll("article").length == 0`)
		b.see(fmt.Sprintf("?q=%d", port))
		b.comes(5*time.Second, "one matches", `document.getElementById("tally").innerText.includes("1 of") && document.querySelectorAll("article").length == 1`)
		b.see("")
	})
	t.Run("explain", func(t *testing.T) {
		b.t = t
		is[bool](b, card(fmt.Sprintf("%s/api:%d", ns, port))+`.querySelector("h3 a").click() === undefined`)
		b.comes(5*time.Second, "the answer", `document.readyState == "complete" && document.querySelectorAll(".way .steps li").length > 2 && document.querySelector(".verdict").innerText.includes("reachable")`)
		is[bool](b, `document.querySelector("input[name=from]").select() === undefined`)
		b.do(chromedp.KeyEvent("internet" + kb.Enter))
		b.comes(5*time.Second, "another answer", `location.search.includes("from=internet") && document.querySelector(".verdict").innerText.includes("not reachable")`)
		b.accessible(t)
		b.contrast(t)
		b.see("explain?to=%20%3Cb%3Enonsense:x")
		b.comes(5*time.Second, "what is wrong with a question", `document.querySelector("[role=alert]").innerText.includes("That is no question")`)
		b.forgive("400")
		b.see("")
	})
	t.Run("keyboard", func(t *testing.T) { b.keyboard(t) })
	t.Run("accessible", func(t *testing.T) { b.accessible(t) })
	for _, scheme := range []string{"light", "dark"} {
		t.Run(scheme, func(t *testing.T) {
			b.prefers("color-scheme", scheme)
			b.contrast(t)
		})
	}
	t.Run("narrow", func(t *testing.T) {
		b.t = t
		for _, width := range []int64{320, 360, 768, 1280} {
			b.size(width, 740, width < 700)
			for _, path := range []string{"", fmt.Sprintf("explain?to=%s/api&from=home", ns)} {
				b.see(path)
				if got := is[int64](b, "document.documentElement.scrollWidth"); got > width {
					t.Errorf("%q at %d pixels is %d wide: %s", path, width, got, is[string](b, `[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".vh")).slice(0, 5).map(e => e.outerHTML.slice(0, 120)).join("\n")`))
				}
			}
		}
		b.size(1280, 1000, false)
		b.see("")
	})
	t.Run("without motion", func(t *testing.T) {
		b.t = t
		l := startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, port), 40)
		defer l.finish(t)
		b.prefers("reduced-motion", "no-preference")
		b.comes(20*time.Second, "something moves", `document.getAnimations().length > 0`)
		b.prefers("reduced-motion", "reduce")
		b.comes(time.Second, "nothing does", `document.getAnimations().length == 0`)
		b.prefers()
	})
	t.Run("without JavaScript", func(t *testing.T) {
		b.t = t
		tell(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		b.see("")
		// What evaluates here is not the page's.
		tell(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: false})
		b.comes(time.Second, "it says what is", card(fmt.Sprintf("%s/api:%d", ns, port))+`.innerText.includes("as even as") && document.getElementById("live").hidden`)
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, wrong := range b.wrong {
		t.Errorf("console: %s", wrong)
	}
	for _, url := range b.requests {
		if !strings.HasPrefix(url, b.origin) && !strings.HasPrefix(url, "data:") {
			t.Errorf("a request for %s", url)
		}
	}
}

// forgive takes what the console says of an answer that is meant to be.
func (b *tab) forgive(part string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = slices.DeleteFunc(b.wrong, func(s string) bool { return strings.Contains(s, part) })
}

// smallAndAlone says how much came for the page, with its first events.
func (b *tab) smallAndAlone(t *testing.T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t.Logf("%d bytes at most in %d requests: %s", b.received, len(b.requests), strings.Join(b.requests, " "))
	if b.received > 100_000 || b.received < 5000 {
		t.Errorf("the page takes %d bytes, want 100 kB at most", b.received)
	}
	for _, url := range b.requests {
		if url != b.origin && url != b.origin+"events" && !strings.HasPrefix(url, "data:") {
			t.Errorf("it also asks for %s", url)
		}
	}
}

// keyboard goes through the page with the Tab key.
func (b *tab) keyboard(t *testing.T) {
	b.t = t
	b.see("")
	var reached []string
	for range 60 {
		b.do(chromedp.KeyEvent(kb.Tab))
		at := is[string](b, `(e => { const s = getComputedStyle(e); return e === document.body ? "" : e.tagName + " " + (e.ariaLabel || e.innerText || e.labels?.[0]?.innerText || "").trim() + (s.outlineStyle == "none" || parseFloat(s.outlineWidth) < 2 ? " UNSEEN" : "") })(document.activeElement)`)
		if at == "" || slices.Contains(reached, at) {
			break
		}
		reached = append(reached, at)
	}
	text := strings.Join(reached, "\n")
	position := -1
	for _, want := range []string{"A Skip to what is open", "A Explain", "A status.json", "A Metrics", "INPUT Filter", "A shop/api", "SUMMARY Totals and terms"} {
		i := strings.Index(text, want)
		if i < position || i < 0 {
			t.Errorf("%q is not reached, or out of order", want)
		}
		position = i
	}
	if strings.Contains(text, "UNSEEN") {
		t.Error("where the focus is cannot be seen")
	}
	if t.Failed() {
		t.Log(text)
	}
	b.do(chromedp.KeyEvent(kb.Enter)) // whatever it is, it does no harm
	b.see("")
}

// accessible looks at what the browser tells a screen reader.
func (b *tab) accessible(t *testing.T) {
	b.t = t
	count := map[string]int{}
	for _, node := range tell(b, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		if node.Ignored || node.Role == nil {
			continue
		}
		text := func(v *accessibility.Value) (s string) {
			if v != nil {
				_ = json.Unmarshal(v.Value, &s)
			}
			return strings.TrimSpace(s)
		}
		role, name := text(node.Role), text(node.Name)
		count[role]++
		switch role {
		case "link", "button", "searchbox", "textbox", "combobox", "image", "img", "heading", "table", "region", "article", "navigation", "DisclosureTriangle", "RootWebArea":
			if name == "" {
				t.Errorf("a %s has no name", role)
			}
		}
	}
	for _, role := range []string{"banner", "main", "navigation", "search"} {
		if count[role] == 0 {
			t.Errorf("there is no %s", role)
		}
	}
	if n := is[int](b, `document.querySelectorAll("h1").length`); n != 1 {
		t.Errorf("%d headings of the first level", n)
	}
	if skipped := is[string](b, `(() => { let last = 0; for (const h of document.querySelectorAll("h1,h2,h3,h4")) { if (h.checkVisibility() && +h.tagName[1] > last + 1) return h.innerText; if (h.checkVisibility()) last = +h.tagName[1]; } return ""; })()`); skipped != "" {
		t.Errorf("the heading %q is of a level that has none above", skipped)
	}
	if t.Failed() {
		t.Log(count)
	}
}

// contrast compares what is written with what it is written on: WCAG 2 AA wants
// 4.5, and 3 of large letters.
func (b *tab) contrast(t *testing.T) {
	b.t = t
	bad := is[[]string](b, `(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
  const found = new Set();
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.closest(".vh") || ![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) continue;
    const s = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
    if (["title", "desc"].includes(e.localName)) continue;
    let under = behind(e);
    if (svg) { const box = e.closest("g").querySelector("rect.box, rect.wall") || (e.closest("svg") && e.closest("svg").querySelector("rect.box")); if (box) under = rgba(getComputedStyle(box).fill); }
    const a = light(rgba(svg ? s.fill : s.color)), b = light(under);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const size = parseFloat(s.fontSize), large = size >= 24 || size >= 18.6 && +s.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) found.add(ratio.toFixed(2) + " " + e.localName + "." + (e.getAttribute("class") || "") + " " + e.textContent.trim().slice(0, 40));
  }
  return [...found].slice(0, 20);
})()`)
	for _, what := range bad {
		t.Errorf("contrast %s", what)
	}
}

// TestStatusPagePictures makes the pictures of the documentation, if
// UPDATE_SCREENSHOTS is set: the lab under some traffic.
func TestStatusPagePictures(t *testing.T) {
	if os.Getenv("UPDATE_SCREENSHOTS") == "" {
		t.Skip("UPDATE_SCREENSHOTS is not set")
	}
	for _, ns := range []string{"shop", "mail"} {
		makeNamespace(t, ns)
	}
	apply(t, deployment("shop", "web-1", "web", "w1", 1)+deployment("shop", "web-2", "web", "w2", 2)+deployment("shop", "web-3", "web", "w3", 3)+
		deployment("public", "blog", "blog", "w2", 2)+deployment("mail", "mail", "mail", "w3", 1)+
		service("shop", "web", "web", "home", "Local", 80)+
		strings.Replace(on(nat, service("shop", "api", "web", "home", "Local", 8443)), "annotations: {", "annotations: {gatehouse.e13.dev/target: pod, ", 1)+
		service("public", "blog", "blog", "internet", "Local", 80)+
		service("mail", "mail", "mail", "home,internet", "Local", 25))
	awaitPods(t, "shop", "web-1", "web-2", "web-3")
	awaitPods(t, "public", "blog")
	awaitPods(t, "mail", "mail")
	t.Cleanup(func() { remove(t, "service,deployment", "-n", "public", "--all") })
	b := openTab(t)
	b.see("")
	b.comes(20*time.Second, "all are up", `document.body.innerText.split("● up").length > 11`)
	for host, address := range map[string]string{"home1": homeAddr + ":80", "home2": homeAddr + ":8443", "inet": publicAddr + ":80"} {
		eventually(t, 20*time.Second, "open", opened(host, address))
		l := startLoad(host, address, map[string]int{"home1": 30, "home2": 12, "inet": 6}[host])
		defer func() { close(l.stop); <-l.done }()
		for range 4 { // and some that stay
			conn, err := lab.Dialer(host)(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
	}
	b.comes(2*time.Minute, "there is something to compare", `(document.body.innerText.match(/Last 1m\d*s?: as even as chance allows/g) || []).length == 3`)
	for _, p := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1280, 1340}, {"dark", "dark", 1280, 1340}, {"phone", "light", 390, 1180}} {
		b.prefers("color-scheme", p.scheme, "reduced-motion", "reduce")
		b.size(p.width, p.height, p.name == "phone")
		b.see("")
		b.comes(5*time.Second, "the page is live", `document.getElementById("live").textContent == "live"`)
		b.photograph(p.name)
	}
	b.prefers("color-scheme", "light")
	b.size(1100, 600, false)
	b.see("explain?to=mail/mail&from=internet")
	b.photograph("explain")
}

// photograph writes a picture of what is seen, with the path that the
// configuration has on a real box.
func (b *tab) photograph(name string) {
	b.t.Helper()
	is[bool](b, fmt.Sprintf(`(() => { const w = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); while (w.nextNode()) w.currentNode.data = w.currentNode.data.replaceAll(%q, "/etc/gatehouse/"); return true; })()`, filepath.Dir(configFile)+"/"))
	shot := tell(b, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatPng})
	decoded, err := png.Decode(bytes.NewReader(shot.Data))
	if err != nil {
		b.t.Fatal(err)
	}
	// A bit less of each colour is not seen, and takes half the room.
	bounds := decoded.Bounds()
	small := image.NewNRGBA(bounds)
	draw.Draw(small, bounds, decoded, bounds.Min, draw.Src)
	for i, v := range small.Pix {
		if i%4 < 3 {
			small.Pix[i] = uint8(min(255, (int(v)+2)/5*5))
		}
	}
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small); err != nil {
		b.t.Fatal(err)
	}
	file := filepath.Join("..", "..", "docs", "status-page-"+name+".png")
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("%s: %d kB", file, out.Len()/1000)
	if out.Len() > 200_000 {
		b.t.Errorf("%s is large", file)
	}
}
