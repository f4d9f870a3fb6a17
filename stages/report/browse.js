// A page to browse documents: a virtual list with filters and a search over whole texts, and one document next to it.
// The page's own script, in front of this one, has FACETS (columns to filter by), GROUPS (choices that are several
// values), MORE (further parts of the address), WHAT (the documents in a word), searchable(content), tags(number) and
// opened(number, content), which are the parts of a row and of an open document, and remembered(), after each change.

const ROW = 76; // pixels of a row; browse.html has the same number
const CACHE = 300e6; // characters of texts that are kept for the next search
const LONGEST = 50_000; // characters of a piece of text that are laid out at once

const state = Object.fromEntries(["id", "q", ...FACETS, ...MORE].map((name) => [name, ""]));
let rows; // the columns of all documents
let view = new Uint32Array(); // the documents that pass filters and search
let at = -1; // the selected place in `view`
let searched = null; // {q, hits: Uint8Array, done}
const texts = new Map(); // block -> lower-case texts
let cached = 0;

const blockOf = (number) => {
  let low = 0, high = rows.starts.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (rows.starts[middle] <= number) low = middle; else high = middle;
  }
  return low;
};
const whole = async (number) => {
  const start = rows.starts[blockOf(number)];
  return (await unpack(`texts-${start}`))[number - start];
};

// ---- filters and search

function passing() {
  const wanted = FACETS.filter((name) => state[name]).map((name) => {
    const { names, codes } = rows.facets[name];
    const group = GROUPS[name]?.[state[name]];
    const pass = names.map((value) => group ? group(value) : (value || "none") === state[name]);
    return (number) => pass[codes[number]];
  });
  if (searched) wanted.push((number) => searched.hits[number]);
  const found = new Uint32Array(rows.ids.length);
  let count = 0;
  for (let number = 0; number < rows.ids.length; number++) {
    if (wanted.every((test) => test(number))) found[count++] = number;
  }
  return found.subarray(0, count);
}

function refresh(keepScroll) {
  view = passing();
  at = view.indexOf(rows.ids.indexOf(state.id));
  const ending = searched && !searched.done ? ` (searching, ${Math.round(100 * searched.share)}%)` : "";
  $("count").textContent = `${thousands(view.length)} of ${thousands(rows.ids.length)} ${WHAT}${ending}`;
  $("spacer").style.height = `${view.length * ROW}px`;
  if (!keepScroll) $("rows").scrollTop = 0;
  drawRows();
  remember();
}

// All words of the query, "quoted" ones as a phrase, anywhere in id, source row, prompt or text.
const termsOf = (query) => [...query.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((found) => found[1] ?? found[2]);

async function textsOf(block) {
  if (texts.has(block)) return texts.get(block);
  const start = rows.starts[block];
  const documents = await unpack(`texts-${start}`);
  const lower = documents.map((d, n) => [rows.ids[start + n], ...searchable(d)].join("\n").toLowerCase());
  const size = lower.reduce((sum, text) => sum + text.length, 0);
  if (cached + size < CACHE) { texts.set(block, lower); cached += size; }
  return lower;
}

async function search() {
  const terms = termsOf(state.q);
  if (!terms.length) { searched = null; refresh(); return; }
  const mine = searched = { q: state.q, hits: new Uint8Array(rows.ids.length), share: 0, done: false };
  let shown = performance.now();
  for (let block = 0; block < rows.starts.length; block++) {
    const start = rows.starts[block];
    (await textsOf(block)).forEach((text, n) => { mine.hits[start + n] = terms.every((term) => text.includes(term)); });
    if (searched !== mine) return; // another search has begun
    mine.share = (block + 1) / rows.starts.length;
    if (performance.now() - shown > 100) {
      refresh(block > 0);
      await new Promise((next) => setTimeout(next));
      shown = performance.now();
      if (searched !== mine) return;
    }
  }
  mine.done = true;
  refresh(true);
}

// ---- the list

function drawRows() {
  const box = $("rows"), first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
  const last = Math.min(view.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 4);
  const drawn = [];
  for (let place = first; place < last; place++) drawn.push(row(place));
  $("window").style.transform = `translateY(${first * ROW}px)`;
  $("window").replaceChildren(...drawn);
  if (at >= first && at < last) box.setAttribute("aria-activedescendant", `row-${at}`);
  else box.removeAttribute("aria-activedescendant");
}

const valueOf = (name, number) => rows.facets[name].names[rows.facets[name].codes[number]];

function row(place) {
  const number = view[place];
  return el("div", {
    id: `row-${place}`, class: "row", role: "option", "aria-selected": String(place === at),
    "aria-setsize": String(view.length), "aria-posinset": String(place + 1), onclick: () => select(place, true),
  }, el("div", { class: "tags" }, ...tags(number)), el("div", { class: "excerpt", dir: "auto" }, rows.excerpts[number] || "(empty)"));
}

function select(place, open) {
  if (!view.length) return;
  at = Math.max(0, Math.min(view.length - 1, place));
  state.id = rows.ids[view[at]];
  const box = $("rows");
  if (at * ROW < box.scrollTop) box.scrollTop = at * ROW;
  if ((at + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (at + 1) * ROW - box.clientHeight;
  drawRows();
  remember();
  show(view[at], open);
}

// ---- one document

async function show(number, open) {
  const id = rows.ids[number], content = await whole(number);
  if (state.id !== id) return; // another one was opened meanwhile
  $("document").replaceChildren(...opened(number, content));
  $("pane").scrollTop = 0;
  highlight();
  if (open) openPane();
}

// A piece of text. A very long one is cut: the browser would need seconds to lay out a million characters.
function prose(kind, text) {
  if (text.length <= LONGEST) return [el(KIND[kind], {}, text)];
  const rest = text.slice(LONGEST), more = el("button", { type: "button" }, `… ${thousands(rest.length)} more characters`);
  more.onclick = () => more.replaceWith(el(KIND[kind], {}, rest));
  return [el(KIND[kind], {}, text.slice(0, LONGEST)), more];
}

function highlight() {
  if (!CSS.highlights) return;
  const ranges = [], walk = document.createTreeWalker($("document"), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const lower = node.data.toLowerCase();
    if (lower.length !== node.data.length) continue;
    for (const term of termsOf(state.q)) {
      for (let start = lower.indexOf(term); start >= 0 && ranges.length < 2000; start = lower.indexOf(term, start + term.length)) {
        const range = new Range();
        range.setStart(node, start);
        range.setEnd(node, start + term.length);
        ranges.push(range);
      }
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

function openPane() { document.body.classList.add("open"); $("pane").focus({ preventScroll: true }); }
function closePane() { document.body.classList.remove("open"); $("rows").focus({ preventScroll: true }); }

// ---- keys, address, start

function remember() { writeState(state); remembered(); }

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, select");
  if (event.key === "Escape") {
    if (typing) { $("rows").focus(); return; }
    if (document.body.classList.contains("open")) closePane();
    else if (state.q) { state.q = $("q").value = ""; search(); }
    return;
  }
  if (typing) {
    if (event.key === "Enter" && event.target.id === "q") { $("rows").focus(); if (at < 0) select(0); }
    return;
  }
  const page = Math.floor($("rows").clientHeight / ROW), inList = document.activeElement === $("rows");
  const steps = { j: 1, k: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 }) };
  const step = steps[event.key];
  if (step) select(at < 0 && Math.abs(step) === 1 ? 0 : at + step, false);
  else if (event.key === "Enter" && inList) { if (at < 0) select(0); openPane(); }
  else if (event.key === "/") $("q").focus();
  else return;
  event.preventDefault();
}

function fillFilters() {
  for (const name of FACETS) {
    const { names, codes } = rows.facets[name], counts = new Uint32Array(names.length);
    for (const code of codes) counts[code]++;
    const options = names.map((value, n) => new Option(visible(`${words(value) || "none"} (${thousands(counts[n])})`), value || "none"));
    const groups = Object.entries(GROUPS[name] ?? {}).map(([word, group]) =>
      new Option(`${word} (${thousands(codes.filter((code) => group(names[code])).length)})`, word));
    $(name).replaceChildren(new Option(`any ${name}`, ""), ...groups, ...options);
    $(name).onchange = () => { state[name] = $(name).value; refresh(); };
  }
}

function follow() {
  const wanted = readState(), query = wanted.q ?? "";
  const changed = query !== state.q;
  for (const name in state) state[name] = wanted[name] ?? "";
  for (const name of FACETS) $(name).value = state[name];
  $("q").value = state.q;
  if (changed) search(); else refresh();
  const number = rows.ids.indexOf(state.id);
  if (number < 0) {
    if (state.id) $("document").replaceChildren(el("p", {}, `${state.id} is not among these ${WHAT}; cosmo trace finds it.`));
    return;
  }
  if (at >= 0) $("rows").scrollTop = Math.max(0, (at - 2) * ROW);
  show(number, true);
}

async function start() {
  rows = await unpack("rows");
  fillFilters();
  let wait;
  $("q").oninput = () => { clearTimeout(wait); wait = setTimeout(() => { state.q = $("q").value; search(); highlight(); }, 150); };
  $("rows").onscroll = drawRows;
  $("close").onclick = closePane;
  new ResizeObserver(drawRows).observe($("rows"));
  addEventListener("keydown", onKey);
  addEventListener("hashchange", follow);
  follow();
  document.body.dataset.ready = "yes";
}
start();
