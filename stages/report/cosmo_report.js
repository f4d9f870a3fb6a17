// The page of two runs: a document's two versions with the words that differ. browse.js has the list.

const FACETS = ["kind", "reason", "source", "style", "audience", "topic"], MORE = ["view"], WHAT = "documents that differ";
const GROUPS = {};
const MOST = 3000; // words that may differ between two texts before they are shown whole; 36 MB while a pair is compared
const FEW = 2; // words in common between two differences that make no island of their own

const searchable = (sides) => sides.flatMap((side) => side ? [side.seed_id ?? "", side.prompt ?? "", side.text] : []);

function tags(number) {
  const value = (name) => valueOf(name, number), kind = value("kind");
  const mark = { added: "ins", removed: "del", changed: "mark" }[kind];
  return [el(mark, {}, kind), ` ${value("reason")} · ${value("source")} · ${words(value("style"))} · ${words(value("audience"))}`];
}

// The summary is there until a document, a search or a filter is asked for.
function remembered() {
  const summary = Object.values(state).every((value) => !value);
  document.body.classList.toggle("summary", summary);
  if (summary) document.body.classList.remove("open");
  $("to-summary").setAttribute("aria-current", summary ? "page" : "false");
  $("to-documents").setAttribute("aria-current", summary ? "false" : "page");
}

let mark = -1; // the difference that `n` has gone to

function opened(number, sides) {
  mark = -1;
  const id = rows.ids[number], value = (name) => valueOf(name, number), [one, two] = sides;
  const [before, after] = rows.tokens[number], count = (tokens) => tokens === null ? "none" : thousands(tokens);
  const meaning = { added: `only in ${rows.names[1]}; in ${rows.names[0]}: ${value("reason")}`, changed: `changed by: ${value("reason")}`,
    removed: `only in ${rows.names[0]}; in ${rows.names[1]}: ${value("reason")}` }[value("kind")];
  const seed = rows.seeds[number], others = [];
  for (let other = 0; seed && other < rows.seeds.length; other++) if (other !== number && rows.seeds[other] === seed) others.push(other);
  const facts = Object.keys(one ?? two).filter((name) => !["text", "prompt"].includes(name));
  return [
    el("header", {}, el("h2", {}, `${words(value("style"))}, for ${words(value("audience"))}`),
      el("p", { class: "tags" }, meaning, ` · ${value("source")}${value("topic") ? ` · ${value("topic")}` : ""} · tokens ${count(before)} → ${count(after)} · `,
        el("a", { href: `#${new URLSearchParams({ id })}` }, "permalink")),
      el("p", { class: "tags legend" }, el("del", {}, "only in ", rows.names[0]), " ", el("ins", {}, "only in ", rows.names[1]))),
    el("h3", {}, "Prompt"), compared(one?.prompt, two?.prompt),
    el("h3", {}, "Completion"), compared(one?.text, two?.text),
    el("h3", {}, "Lineage"),
    el("dl", {}, ...[["completion_id", id, id], ...facts.map((name) => [name, one?.[name], two?.[name]])].flatMap(([name, a, b]) =>
      (a ?? b ?? "") === "" ? [] : [el("dt", {}, words(name)), el("dd", {}, ...(one && two && a !== b ? [el("del", {}, `${a ?? "none"}`), " ", el("ins", {}, `${b ?? "none"}`)] : [`${a ?? b}`]))])),
    ...(others.length ? [el("h3", {}, "Of the same source row"), el("ul", {}, ...others.map((other) => el("li", {},
      el("a", { href: `#${new URLSearchParams({ id: rows.ids[other] })}` }, `${words(valueOf("style", other))}, for ${words(valueOf("audience", other))}`), ` ${valueOf("kind", other)}`)))] : []),
  ];
}

// Two texts next to each other; one that both have is shown once.
function compared(one, two) {
  if (one === two) return el("div", { class: "text", dir: "auto" }, ...prose("=", one ?? ""));
  const pieces = one == null ? [["+", two ?? ""]] : two == null ? [["-", one]] : difference(one, two);
  const side = (kind, name) => el("section", {}, el("p", { class: "tags" }, name),
    el("div", { class: "text", dir: "auto" }, ...pieces.filter((piece) => piece[0] !== (kind === "-" ? "+" : "-")).flatMap(([k, text]) => prose(k, text))));
  const absent = (name) => el("section", {}, el("p", { class: "tags" }, name), el("p", { class: "absent" }, "nothing"));
  return el("div", { class: "sides two" }, one == null ? absent(rows.names[0]) : side("-", rows.names[0]), two == null ? absent(rows.names[1]) : side("+", rows.names[1]));
}

// The pieces of two texts, in words with the spaces behind them: "=" in both, "-" in the first, "+" in the second.
function difference(one, two) {
  const a = one.match(/\s*\S+\s*|\s+/g) ?? [], b = two.match(/\s*\S+\s*|\s+/g) ?? [];
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const first = a.slice(start, a.length - end), second = b.slice(start, b.length - end);
  const middle = shortest(first, second) ?? [["-", first], ["+", second]];
  return joined([["=", a.slice(0, start)], ...middle, ["=", a.slice(a.length - end)]]);
}

// The shortest edit of one list into another (Myers, "An O(ND) difference algorithm", 1986); null beyond MOST edits.
function shortest(a, b) {
  const reach = Math.min(MOST, a.length + b.length), far = new Int32Array(2 * reach + 2), trace = [];
  for (let edits = 0; edits <= reach; edits++) {
    trace.push(far.slice(reach - edits, reach + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && far[reach + k - 1] < far[reach + k + 1]);
      let x = down ? far[reach + k + 1] : far[reach + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      far[reach + k] = x;
      if (x >= a.length && x - k >= b.length) return walked(a, b, trace);
    }
  }
  return null;
}

function walked(a, b, trace) {
  const pieces = [];
  let x = a.length, y = b.length;
  for (let edits = trace.length - 1; edits > 0; edits--) {
    const far = trace[edits], at = (k) => far[k + edits], k = x - y; // before this edit
    const down = k === -edits || (k !== edits && at(k - 1) < at(k + 1)), from = down ? k + 1 : k - 1, fromX = at(from);
    const afterX = down ? fromX : fromX + 1;
    if (x > afterX) pieces.unshift(["=", a.slice(afterX, x)]);
    pieces.unshift(down ? ["+", [b[fromX - from]]] : ["-", [a[fromX]]]);
    x = fromX;
    y = fromX - from;
  }
  if (x) pieces.unshift(["=", a.slice(0, x)]);
  return pieces;
}

// Pieces of one kind together, and a word or two in common between differences as a part of them: easier to read.
function joined(pieces) {
  const result = [];
  let cut = [], put = [];
  const flush = () => {
    if (cut.length) result.push(["-", cut.join("")]);
    if (put.length) result.push(["+", put.join("")]);
    cut = []; put = [];
  };
  pieces.forEach(([kind, list], place) => {
    if (kind === "-") cut.push(...list);
    else if (kind === "+") put.push(...list);
    else if (list.length <= FEW && (cut.length || put.length) && place < pieces.length - 2 && cut.length + put.length > 2 * list.length) { cut.push(...list); put.push(...list); }
    else if (list.length) { flush(); result.push(["=", list.join("")]); }
  });
  flush();
  return result;
}

const KIND = { "=": "span", "-": "del", "+": "ins" };

addEventListener("keydown", (event) => {
  const marks = document.querySelectorAll("#document .text del, #document .text ins");
  if (event.key !== "n" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select") || !marks.length) return;
  mark = (mark + 1) % marks.length;
  marks[mark].scrollIntoView({ block: "center" });
  for (const one of marks) one.classList.toggle("here", one === marks[mark]);
});
