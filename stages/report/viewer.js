// The viewer: a document with what cleaning cut and why it was removed. browse.js has the list.

const FACETS = ["source", "format", "audience", "topic", "state"], MORE = [], WHAT = "documents";
const GROUPS = { state: { removed: (value) => value !== "kept" } };
const KIND = { "=": "span", "-": "del", "+": "ins", "!": "mark" };
const remembered = () => {};

const searchable = (content) => [content.seed_id, content.prompt, content.pieces.map((piece) => piece[1]).join("")];

function tags(number) {
  const value = (name) => valueOf(name, number);
  const gone = value("state") === "kept" ? [] : [el("span", { class: "gone" }, value("state")), " · "];
  return [...gone, ["source", "format", "audience"].map((name) => words(value(name))).join(" · ")];
}

function opened(number, content) {
  const id = rows.ids[number], value = (name) => valueOf(name, number);
  const cut = content.pieces.some((piece) => piece[0] === "-");
  const lineage = Object.entries(content).filter(([name]) => !["prompt", "pieces", "evidence"].includes(name));
  const facts = [["completion_id", id], ...FACETS.map((n) => [n, value(n)]), ["tokens", rows.tokens[number]], ...lineage];
  return [
    el("header", {}, el("h2", {}, `${words(value("format"))}, for ${words(value("audience"))}`),
      el("p", { class: "tags" }, value("state") === "kept" ? "in the corpus" : el("span", { class: "gone" }, `removed by ${value("state")}`),
        ` · ${value("source")}${value("topic") ? ` · ${value("topic")}` : ""} · ${thousands(rows.tokens[number])} tokens · `,
        el("a", { href: `#${new URLSearchParams({ id })}` }, "permalink"))),
    ...(content.evidence === undefined ? [] : [el("section", { class: "evidence" }, el("h3", {}, "Why it was removed"), list(pairs(content.evidence)))]),
    el("div", { class: "sides" },
      el("section", {}, el("h3", {}, "Prompt"), el("div", { class: "text", dir: "auto" }, ...prose("=", content.prompt))),
      el("section", {}, el("h3", {}, "Completion"),
        ...(cut ? [el("p", { class: "tags" }, "Marked is what cleaning ", el("del", {}, "cut"), " or ", el("ins", {}, "put in"), ".")] : []),
        el("div", { class: "text", dir: "auto" }, ...content.pieces.flatMap(([kind, text]) => prose(kind, text))))),
    el("section", {}, el("h3", {}, "Lineage"), el("p", {}, el("code", {}, `cosmo trace ${id}`), " shows the whole path, and ",
      el("code", {}, `cosmo trace '${content.seed_id}'`), " the source row. ",
      ...(value("source") === "web" ? [el("a", { href: `map.html#${new URLSearchParams({ id: content.seed_id })}` }, "On the map")] : [])),
    list(facts)),
  ];
}

// Evidence as names and values; parts of lists and objects one after another.
function pairs(value, name = "evidence") {
  if (Array.isArray(value)) return value.flatMap((part) => pairs(part, name));
  if (value && typeof value === "object") return Object.entries(value).flatMap(([key, part]) => pairs(part, key));
  return [[name, value]];
}

// A description list; a value that is another document's id becomes a link to it.
function list(entries) {
  return el("dl", {}, ...entries.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [
    el("dt", {}, words(name)),
    el("dd", { dir: "auto" }, name === "kept" ? el("a", { href: `#${new URLSearchParams({ id: value })}` }, String(value)) : String(value))]));
}
