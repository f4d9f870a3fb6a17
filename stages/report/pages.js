"use strict";
// What the viewer and the map share. Text is only ever put into text nodes: the page's policy forbids markup from text.

const $ = (id) => document.getElementById(id);

// Control characters and marks that turn the direction of text around are shown, not obeyed.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (sign) => {
  const code = sign.codePointAt(0);
  return code < 32 ? String.fromCodePoint(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
});

// An element with properties (`class`, `dataset` and `aria-...` too) and children: nodes or texts.
function el(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name === "class") node.className = value;
    else if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.map((child) => typeof child === "string" ? visible(child) : child));
  return node;
}

// The JSON of a block of packed data.
async function unpack(name) {
  const text = $(`data-${name}`).textContent;
  const bytes = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

const thousands = (count) => count.toLocaleString("en");
const words = (name) => name.replaceAll("_", " ");

// The address's fragment is the page's state: #id=...&source=...
const readState = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
function writeState(state) {
  const set = Object.entries(state).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(set)}`);
}
