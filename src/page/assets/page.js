// Keeps what is shown up to date. Everything on the page can be read, and done, without it.
//
// The server says that something has changed; then this page is fetched anew, and those of its regions that differ take the
// place of the old ones. Forms are in no region: what somebody types is never touched.
"use strict";

(() => {
  const AT_MOST_EVERY = 1500;
  const WITHOUT_EVENTS = 10_000;
  const light = document.getElementById("live");
  const announcer = document.getElementById("announce");
  if (!light || document.querySelector("[data-live]") === null) return;

  let fetching = false;
  let again = false;
  let last = Date.now();
  let timer = 0;

  const show = (state, word) => {
    light.hidden = false;
    light.dataset.state = state;
    light.querySelector(".word").textContent = word;
  };

  const regions = (from) => new Map([...from.querySelectorAll("[data-live]")].map((it) => [it.dataset.live, it]));

  // Where the keyboard is, in words that still hold in the new region.
  const place = (region) => {
    const it = document.activeElement;
    if (!region.contains(it) || it === region) return null;
    if (it.id) return `#${CSS.escape(it.id)}`;
    if (it.getAttribute("href")) return `a[href="${CSS.escape(it.getAttribute("href"))}"]`;
    return it.className ? `${it.localName}.${CSS.escape(it.classList[0])}` : it.localName;
  };

  const replace = (old, young) => {
    if (old.outerHTML === young.outerHTML) return;
    const focus = place(old);
    const open = [...old.querySelectorAll("details")].map((it) => it.open);
    const scrolled = [...old.querySelectorAll(".scroll, pre")].map((it) => [it.scrollLeft, it.scrollTop]);
    old.replaceWith(young);
    young.querySelectorAll("details").forEach((it, at) => { it.open = open[at] ?? false; });
    young.querySelectorAll(".scroll, pre").forEach((it, at) => { [it.scrollLeft, it.scrollTop] = scrolled[at] ?? [0, 0]; });
    if (focus) young.querySelector(focus)?.focus({ preventScroll: true });
  };

  const sentence = () => document.querySelector(".health h1")?.textContent ?? "";

  const take = (text) => {
    const young = new DOMParser().parseFromString(text, "text/html");
    const [now, then] = [regions(document), regions(young)];
    const before = sentence();
    if ([...now.keys()].join() === [...then.keys()].join()) {
      for (const [name, region] of then) replace(now.get(name), document.adoptNode(region));
    } else if (!document.querySelector("main form")) {
      document.querySelector("main").replaceChildren(...[...young.querySelector("main").childNodes].map((it) => document.adoptNode(it)));
    }
    document.title = young.title;
    if (announcer && sentence() !== before) announcer.textContent = sentence();
  };

  const refresh = async () => {
    if (document.hidden) { again = true; return; }
    if (fetching) { again = true; return; }
    [fetching, again] = [true, false];
    last = Date.now();
    try {
      const address = new URL(location.href);
      for (const told of ["did", "n", "refused", "in_flight"]) address.searchParams.delete(told);
      const answer = await fetch(address, { headers: { accept: "text/html" }, cache: "no-store" });
      if (answer.redirected && new URL(answer.url).pathname === "/sign-in") { location.reload(); return; }
      if (answer.ok || answer.status === 404) { take(await answer.text()); show("on", "live"); }
      else show("lost", "not up to date");
    } catch {
      show("lost", "no connection");
    } finally {
      fetching = false;
      if (again) soon();
    }
  };

  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, Math.max(0, last + AT_MOST_EVERY - Date.now()));
  };

  const listen = () => {
    const updates = new EventSource("/updates");
    updates.onopen = () => show("on", "live");
    updates.onmessage = (message) => { if (message.data !== "hello") soon(); };
    updates.onerror = () => {
      if (updates.readyState === EventSource.CLOSED) setTimeout(listen, 3 * WITHOUT_EVENTS);
    };
    addEventListener("pagehide", () => updates.close());
  };

  document.addEventListener("visibilitychange", () => { if (!document.hidden && again) soon(); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  setInterval(() => { if (Date.now() - last > WITHOUT_EVENTS * 1.5) soon(); }, WITHOUT_EVENTS);
  listen();
})();
