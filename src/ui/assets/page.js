// Follows a live page, and filters what it shows.
"use strict";
(() => {
  const main = document.getElementById("main");
  const note = document.getElementById("live");

  // --- the filter, which stays while the page changes

  const filter = document.querySelector("form[data-filter] input");
  const apply = () => {
    const words = filter ? filter.value.trim().toLowerCase().split(/\s+/) : [];
    for (const element of main.querySelectorAll("[data-name]")) {
      element.hidden = !words.every((word) => element.dataset.name.toLowerCase().includes(word));
    }
  };
  if (filter) {
    filter.form.addEventListener("submit", (event) => event.preventDefault());
    filter.addEventListener("input", apply);
  }

  // --- the keyboard: `/` goes to the search field

  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select")) return;
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  });

  // --- live pieces

  if (!main || !main.dataset.live) return;
  let version = main.dataset.version;
  let source;
  const waiting = new Map();

  const isSelected = (element) => {
    const selection = document.getSelection();
    return !selection.isCollapsed && selection.rangeCount > 0 && selection.getRangeAt(0).intersectsNode(element);
  };
  // The focus stays on the same link, although its element is replaced.
  const keepFocus = (element, change) => {
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    const href = focused && focused.getAttribute("href");
    const id = focused && focused.id;
    const root = element.id === "main" ? () => element : () => document.getElementById(element.id);
    change();
    if (!focused || document.contains(focused)) return;
    const next = root() && (id ? document.getElementById(id) : root().querySelector(`a[href="${CSS.escape(href || "")}"]`));
    if (next) next.focus({ preventScroll: true });
  };
  const replace = (id, html) => {
    const element = document.getElementById(id);
    if (!element) return;
    if (isSelected(element)) {
      waiting.set(id, html);
      return;
    }
    waiting.delete(id);
    const { scrollLeft } = element;
    keepFocus(element, () => { element.outerHTML = html; });
    const now = document.getElementById(id);
    if (now && scrollLeft) now.scrollLeft = scrollLeft;
  };
  document.addEventListener("selectionchange", () => {
    if (document.getSelection().isCollapsed) {
      for (const [id, html] of [...waiting]) replace(id, html);
      apply();
    }
  });

  const say = (text) => { if (note.textContent !== text) note.textContent = text; };
  const open = () => {
    const url = new URL(main.dataset.live, location.href);
    url.searchParams.set("version", version);
    source = new EventSource(url);
    source.addEventListener("open", () => say("Live."));
    source.addEventListener("error", () => {
      say("No connection: what you see may be old. Connecting again.");
      // After an answer that is no stream, such as a refusal, a browser does not try again by itself.
      if (source && source.readyState === EventSource.CLOSED) {
        source = undefined;
        setTimeout(follow, 5000);
      }
    });
    source.addEventListener("pieces", (event) => {
      version = event.lastEventId;
      for (const [id, html] of JSON.parse(event.data)) replace(id, html);
      apply();
    });
    source.addEventListener("all", (event) => {
      version = event.lastEventId;
      waiting.clear();
      const value = filter && filter.value;
      keepFocus(main, () => { main.innerHTML = JSON.parse(event.data); });
      const field = document.querySelector("form[data-filter] input");
      if (field && field !== filter) {
        // The form was replaced, too: the old one goes on with its listeners and its text.
        const focused = document.activeElement === field;
        field.form.replaceWith(filter.form);
        filter.value = value;
        if (focused) filter.focus({ preventScroll: true });
      }
      apply();
    });
  };
  // A browser opens only a few connections to one host: hidden pages need none.
  const follow = () => {
    if (document.hidden) {
      if (source) source.close();
      source = undefined;
      say("Paused while the page is hidden.");
    } else if (!source) {
      open();
    }
  };
  document.addEventListener("visibilitychange", follow);
  window.addEventListener("pagehide", () => { if (source) source.close(); source = undefined; });
  window.addEventListener("pageshow", follow);
  follow();
})();
