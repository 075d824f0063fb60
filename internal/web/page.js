"use strict";
(() => {
  const byId = id => document.getElementById(id);
  const cards = byId("cards"), live = byId("live"), filter = byId("filter"), words = byId("q");
  let source, again, silence, page, spoken = "";

  // made is the element of a piece. The page's policy lets nothing in it run.
  const made = html => {
    const t = document.createElement("template");
    t.innerHTML = html;
    return t.content.firstElementChild;
  };

  // morph makes an element equal to another and keeps what is equal already:
  // whoever has the focus, has folded something out or selects text goes on.
  const morph = (a, b) => {
    if (a.isEqualNode(b)) return;
    for (const {name} of [...a.attributes]) if (!b.hasAttribute(name) && !(name === "open" && a.localName === "details")) a.removeAttribute(name);
    for (const {name, value} of b.attributes) if (a.getAttribute(name) !== value) a.setAttribute(name, value);
    const old = [...a.childNodes], fresh = [...b.childNodes];
    fresh.forEach((n, i) => {
      const o = old[i];
      if (!o) a.append(n);
      else if (o.nodeType !== n.nodeType || o.nodeName !== n.nodeName) o.replaceWith(n);
      else if (o.nodeType === Node.ELEMENT_NODE) morph(o, n);
      else if (o.nodeValue !== n.nodeValue) o.nodeValue = n.nodeValue;
    });
    for (const o of old.slice(fresh.length)) o.remove();
  };

  const apply = news => {
    if (news.page) {
      if (page && page !== news.page) return location.reload(); // another gatehouse has taken over
      page = news.page;
    }
    if (news.title) document.title = news.title;
    const fresh = new Map();
    for (const [id, html] of Object.entries(news.html || {})) {
      const n = made(html), o = byId(id);
      if (o) morph(o, n);
      else fresh.set(id, n);
    }
    if (news.order || news.none) {
      const order = news.order || [], wanted = new Set(order);
      for (const c of [...cards.children]) if (!wanted.has(c.id)) c.remove();
      let at = cards.firstElementChild;
      for (const id of order) {
        const c = byId(id) || fresh.get(id);
        if (!c) continue;
        if (c === at) at = at.nextElementSibling;
        else cards.insertBefore(c, at);
      }
    }
    // Said once, and not with each number that changes.
    const heading = byId("problems").querySelector("h2, p").textContent.trim();
    if (spoken && heading !== spoken) byId("say").textContent = heading;
    spoken = heading;
  };

  const says = (text, kind) => {
    if (live.textContent !== text) live.textContent = text;
    live.className = "pill " + kind;
    live.hidden = false;
  };
  const close = () => {
    clearTimeout(again);
    clearTimeout(silence);
    if (source) source.close();
    source = undefined;
  };
  const heard = () => {
    says("live", "good");
    clearTimeout(silence);
    silence = setTimeout(lost, 40000); // the server beats each 15 s
  };
  const lost = () => {
    close();
    says("connection lost, trying again", "bad");
    again = setTimeout(open, 2000);
  };
  const open = () => {
    close();
    if (document.hidden) return;
    source = new EventSource("events" + location.search);
    source.onmessage = e => { heard(); apply(JSON.parse(e.data)); };
    source.addEventListener("beat", heard);
    source.onerror = lost;
  };
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
  addEventListener("pagehide", close);
  addEventListener("pageshow", e => { if (e.persisted) open(); });

  let typed;
  const filtered = () => {
    const q = words.value.trim();
    history.replaceState(null, "", q ? "?q=" + encodeURIComponent(q) : location.pathname);
    open();
  };
  words.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(filtered, 250); });
  filter.addEventListener("submit", e => { e.preventDefault(); clearTimeout(typed); filtered(); });
  filter.querySelector("button").hidden = true;
  open();
})();
