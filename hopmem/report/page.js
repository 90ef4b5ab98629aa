"use strict";
// Fills the table of patterns: names become text, never markup.
(() => {
  const CHUNK = 200; // rows that are put into the page at a time
  const number = (n) => n.toLocaleString("en-US");
  const folded = (text) => text.normalize("NFKC").toLowerCase();
  const byId = (id) => document.getElementById(id);

  const rows = JSON.parse(byId("rows").textContent).map(([name, delta, nearest, exact, png]) => ({ name, delta, nearest, exact, png, key: folded(name) }));
  const pictures = rows.some((row) => row.png !== undefined);
  const fixed = rows.some((row) => row.exact !== null);
  const body = document.querySelector("#patterns tbody");
  const heads = [...document.querySelectorAll("#patterns thead button")];
  const search = byId("search"), count = byId("count"), more = byId("more");
  const order = new Intl.Collator("en", { numeric: true }).compare;
  let found = rows, shown = 0, sorted = { key: "delta", down: false };

  const comparers = {
    name: (a, b) => order(a.name, b.name),
    nearest: (a, b) => order(a.nearest, b.nearest),
    delta: (a, b) => (a.delta ?? Infinity) - (b.delta ?? Infinity) || 0, // two that are unknown are equal
    exact: (a, b) => Number(a.exact) - Number(b.exact),
  };

  function cell(text, kind) {
    const td = document.createElement("td");
    td.textContent = text;
    td.className = kind;
    return td;
  }

  function named(text) {
    const td = document.createElement("td"), div = document.createElement("div");
    div.textContent = text;
    div.className = "name";
    div.dir = "auto"; // a name from right to left turns nothing around it
    td.append(div);
    return td;
  }

  function thumbnail(row) {
    const td = document.createElement("td");
    td.className = "thumbnail";
    if (row.png !== undefined) {
      const img = document.createElement("img");
      img.alt = "";
      img.decoding = "async";
      img.src = "data:image/png;base64," + row.png;
      td.append(img);
    }
    return td;
  }

  function line(row) {
    const tr = document.createElement("tr");
    if (pictures) tr.append(thumbnail(row));
    tr.append(named(row.name), named(row.nearest), cell(row.delta === null ? "\u2013" : String(row.delta), "n"));
    if (fixed) tr.append(cell(row.exact ? "yes" : "no", ""));
    return tr;
  }

  function showMore() {
    const next = found.slice(shown, shown + CHUNK);
    body.append(...next.map(line));
    shown += next.length;
    const left = found.length - shown;
    more.hidden = left === 0;
    more.textContent = "Show " + number(Math.min(CHUNK, left)) + " more of " + number(left);
  }

  function show() {
    const wanted = folded(search.value);
    found = wanted === "" ? rows : rows.filter((row) => row.key.includes(wanted));
    count.textContent = number(found.length) + " of " + number(rows.length) + " patterns";
    body.replaceChildren();
    shown = 0;
    showMore();
  }

  function sort(key, down) {
    sorted = { key, down };
    rows.sort((a, b) => (down ? comparers[key](b, a) : comparers[key](a, b)));
    for (const head of heads) {
      const here = head.dataset.key === key;
      head.parentElement.setAttribute("aria-sort", !here ? "none" : down ? "descending" : "ascending");
    }
  }

  function fromAddress() {
    const text = /^#q=(.*)$/s.exec(location.hash);
    if (text === null) return;
    try {
      search.value = decodeURIComponent(text[1]);
    } catch {
      search.value = text[1]; // a % that begins no code
    }
  }

  for (const head of heads) {
    head.addEventListener("click", () => {
      const key = head.dataset.key;
      sort(key, sorted.key === key && !sorted.down);
      show();
    });
  }
  search.addEventListener("input", show);
  more.addEventListener("click", showMore);
  addEventListener("hashchange", () => { fromAddress(); show(); });
  byId("browse").hidden = false;
  fromAddress();
  sort("delta", false);
  show();
})();
