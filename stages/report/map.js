// The map: points put into a picture one by one (100,000 take some milliseconds, on any machine), names on top.

const GRID = 65535;
const HUES = ["#4477aa", "#ee6677", "#228833", "#c2a51c", "#3aa6c9", "#aa3377", "#ee8866", "#2d9d83", "#8f9c1c", "#8c7fd0", "#b07050", "#5f8fd8"];
const LISTED = 500; // points of a selection in the list
const NEAR = 10; // pixels from which a point is under the mouse

const state = { id: "", colour: "topic" };
const canvas = $("map"), context = canvas.getContext("2d");
let points, count;
let view; // the middle, pixels per place, how much wider than high a place is, whether a person has moved it
let hidden = new Set(); // names in the legend that are switched off
let picked = null; // Uint8Array: inside the lasso
let lasso = null; // [[x, y], ...] in pixels, while it is drawn
let lassoing = false, waiting = false;
let over = -1; // the point under the mouse

// ---- drawing

const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
const pixel = (hex) => (0xff000000 | (parseInt(hex.slice(5), 16) << 16) | (parseInt(hex.slice(3, 5), 16) << 8) | parseInt(hex.slice(1, 3), 16)) >>> 0;
const colourOf = (name, n) => ({ "no topic": "#8f99a6", kept: "#4477aa", dropped: "#ee6677" })[name] ?? HUES[n % HUES.length];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function fit() {
  const box = canvas.getBoundingClientRect(), dense = Math.min(devicePixelRatio, 2);
  canvas.width = Math.max(1, Math.round(box.width * dense));
  canvas.height = Math.max(1, Math.round(box.height * dense));
  canvas.dense = dense;
  if (!view?.moved) reset(); else later();
}
function reset() {
  view = { x: GRID / 2, y: GRID / 2, scale: 0.86 * canvas.height / GRID, moved: false };
  view.wide = Math.min(2.2, 0.9 * canvas.width / (GRID * view.scale)); // the map may be stretched to a wide window
  later();
}
const screenX = (x) => (x - view.x) * view.scale * view.wide + canvas.width / 2;
const screenY = (y) => (y - view.y) * view.scale + canvas.height / 2;

// The places of a disc's pixels around its middle; of a ring's for what was dropped.
function disc(radius, width, hollow) {
  const places = [];
  for (let dy = -radius; dy <= radius; dy++) {
    for (let dx = -radius; dx <= radius; dx++) {
      const far = Math.hypot(dx, dy);
      if (far <= radius + 0.3 && !(hollow && far < radius - 0.7)) places.push(dy * width + dx);
    }
  }
  return places;
}

function draw() {
  const { width, height } = canvas, picture = context.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer), { names, codes } = points.facets[state.colour];
  const dropped = points.facets.state.names.indexOf("dropped"), states = points.facets.state.codes;
  const zoom = view.scale * GRID / height, crowd = Math.min(4, 30 / Math.sqrt(count)); // fewer points are larger
  const radius = Math.max(1, Math.min(9, Math.round(canvas.dense * (1 + crowd) * Math.sqrt(zoom))));
  const shapes = [disc(radius, width, false), disc(radius, width, radius > 1)];
  const colours = names.map((name, n) => hidden.has(name) ? 0 : pixel(colourOf(name, n))), faint = pixel(style("--faint"));
  const stretch = view.scale * view.wide, left = width / 2 - view.x * stretch, top = height / 2 - view.y * view.scale;
  for (const chosen of picked ? [0, 1] : [0]) { // what the lasso holds is drawn last, on top
    for (let n = 0; n < count; n++) {
      if (picked && picked[n] !== chosen) continue;
      const colour = picked && !chosen && colours[codes[n]] ? faint : colours[codes[n]];
      const x = Math.round(points.x[n] * stretch + left), y = Math.round(points.y[n] * view.scale + top);
      if (!colour || x < radius || y < radius || x >= width - radius || y >= height - radius) continue;
      const middle = y * width + x;
      for (const place of states[n] === dropped ? shapes[1] : shapes[0]) pixels[middle + place] = colour;
    }
  }
  context.putImageData(picture, 0, 0);
  drawNames();
  drawMarks(radius);
}

function drawNames() {
  const size = 13 * canvas.dense, taken = [];
  context.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  context.textAlign = "center";
  context.lineJoin = "round";
  context.lineWidth = 3.5 * canvas.dense;
  context.strokeStyle = style("--paper");
  for (const name of points.names) {
    const text = visible(name.topic), x = screenX(name.x), y = screenY(name.y) - 0.8 * size, half = context.measureText(text).width / 2 + 4;
    const box = [x - half, y - size, x + half, y + size * 0.4];
    if (box[0] < 0 || box[1] < 0 || box[2] > canvas.width || box[3] > canvas.height) continue;
    if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
    taken.push(box);
    context.fillStyle = style(name.kept < 0.5 ? "--loss" : "--ink");
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }
}

function drawMarks(radius) {
  context.lineWidth = 2 * canvas.dense;
  context.strokeStyle = style("--ink");
  for (const n of new Set([over, points.ids.indexOf(state.id)])) {
    if (n < 0) continue;
    context.beginPath();
    context.arc(screenX(points.x[n]), screenY(points.y[n]), radius + 4 * canvas.dense, 0, 7);
    context.stroke();
  }
  if (!lasso) return;
  context.beginPath();
  for (const [x, y] of lasso) context.lineTo(x * canvas.dense, y * canvas.dense);
  context.stroke();
}

// ---- what is where

const shown = (n) => !hidden.has(points.facets[state.colour].names[points.facets[state.colour].codes[n]]);

function nearest(x, y) {
  let best = -1, least = (NEAR * canvas.dense) ** 2;
  for (let n = 0; n < count; n++) {
    const dx = screenX(points.x[n]) - x * canvas.dense, dy = screenY(points.y[n]) - y * canvas.dense;
    const far = dx * dx + dy * dy;
    if (far < least && shown(n)) { best = n; least = far; }
  }
  return best;
}

function inside(polygon) {
  const found = new Uint8Array(count), [xs, ys] = [0, 1].map((axis) => polygon.map((place) => place[axis] * canvas.dense));
  for (let n = 0; n < count; n++) {
    const x = screenX(points.x[n]), y = screenY(points.y[n]);
    for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) { // even-odd rule
      if (ys[i] > y !== ys[j] > y && x < (xs[j] - xs[i]) * (y - ys[i]) / (ys[j] - ys[i]) + xs[i]) found[n] ^= 1;
    }
    if (found[n] && !shown(n)) found[n] = 0;
  }
  return found;
}

// ---- the side: legend and list

function legend() {
  const { names, codes } = points.facets[state.colour], counts = new Uint32Array(names.length);
  for (const code of codes) counts[code]++;
  $("legend").replaceChildren(...names.map((name, n) => {
    const dot = el("span", { class: "dot" });
    dot.style.background = colourOf(name, n);
    const button = el("button", { type: "button", "aria-pressed": String(!hidden.has(name)) }, dot, `${words(name)} `, el("small", {}, thousands(counts[n])));
    button.onclick = () => {
      if (hidden.has(name)) hidden.delete(name); else hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      later();
    };
    return button;
  }));
}

function list(numbers, title) {
  const value = (name, n) => words(points.facets[name].names[points.facets[name].codes[n]]);
  $("chosen").textContent = title;
  $("list").replaceChildren(...numbers.slice(0, LISTED).map((n) => {
    const look = el("button", { type: "button", class: "look", dir: "auto" }, points.excerpts[n] || points.ids[n]);
    look.onclick = () => { state.id = points.ids[n]; writeState(state); later(); };
    const documents = `viewer.html#${new URLSearchParams({ q: `"${points.ids[n]}"` })}`;
    return el("li", {}, look, el("p", { class: "tags" }, `${value("topic", n)} · ${value("state", n)} · `, el("a", { href: documents }, "its documents")));
  }));
  if (numbers.length > LISTED) $("list").append(el("li", { class: "tags" }, `and ${thousands(numbers.length - LISTED)} more`));
  $("copy").hidden = !numbers.length;
  $("copy").onclick = () => navigator.clipboard.writeText(numbers.map((n) => points.ids[n]).join("\n"));
}

function choose(polygon) {
  picked = polygon && polygon.length > 2 ? inside(polygon) : null;
  const numbers = picked ? [...picked.keys()].filter((n) => picked[n]) : [];
  list(numbers, picked ? `${thousands(numbers.length)} inside the lasso` : "Draw a lasso to list pages");
  later();
}

// ---- mouse, touch, keys

const held = new Map(); // pointers that are down
function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
  view.moved = true;
  const wide = view.scale * view.wide, atX = (x - canvas.width / 2) / wide + view.x, atY = (y - canvas.height / 2) / view.scale + view.y;
  view.scale = Math.max(0.3 * canvas.height / GRID, Math.min(200 * canvas.height / GRID, view.scale * factor));
  view.x = atX - (x - canvas.width / 2) / (view.scale * view.wide);
  view.y = atY - (y - canvas.height / 2) / view.scale;
  later();
}
function pan(dx, dy) {
  view.moved = true;
  view.x -= dx * canvas.dense / (view.scale * view.wide);
  view.y -= dy * canvas.dense / view.scale;
  later();
}
function setLasso(on) {
  lassoing = on;
  $("lasso").setAttribute("aria-pressed", String(on));
  canvas.classList.toggle("lassoing", on);
}
const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.x, event.clientY - box.y]; };

canvas.onpointerdown = (event) => {
  canvas.setPointerCapture(event.pointerId);
  held.set(event.pointerId, place(event));
  if (held.size === 1 && (lassoing || event.shiftKey)) lasso = [place(event)];
};
canvas.onpointermove = (event) => {
  const now = place(event), before = held.get(event.pointerId);
  if (!before) { hover(now); return; }
  held.set(event.pointerId, now);
  if (lasso) { lasso.push(now); later(); return; }
  if (held.size === 2) {
    const other = [...held].find(([id]) => id !== event.pointerId)[1], far = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
    zoom(far(now) / Math.max(far(before), 1), other[0] * canvas.dense, other[1] * canvas.dense);
  } else pan(now[0] - before[0], now[1] - before[1]);
};
canvas.onpointerup = canvas.onpointercancel = (event) => {
  held.delete(event.pointerId);
  if (!lasso) { hover(place(event)); return; }
  const drawn = lasso;
  lasso = null;
  setLasso(false);
  choose(drawn);
};
canvas.onpointerleave = () => { over = -1; $("tip").hidden = true; later(); };
canvas.onwheel = (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), ...place(event).map((value) => value * canvas.dense));
};

function hover([x, y]) {
  const now = nearest(x, y);
  const tip = $("tip");
  if (now !== over) { over = now; later(); }
  tip.hidden = now < 0;
  if (now < 0) return;
  const value = (name) => words(points.facets[name].names[points.facets[name].codes[now]]);
  tip.replaceChildren(el("p", { class: "tags" }, `${value("topic")} · ${value("source")} · ${value("state")}`), el("p", { dir: "auto" }, points.excerpts[now]), el("p", { class: "tags" }, points.ids[now]));
  const box = canvas.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, box.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, y + 14 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 14 : y + 14)}px`;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("select")) return;
  const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (event.key in steps && document.activeElement === canvas) pan(...steps[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") reset();
  else if (event.key === "l") setLasso(!lassoing);
  else if (event.key === "Escape") { lasso = null; setLasso(false); choose(null); }
  else return;
  event.preventDefault();
}

function follow() {
  const wanted = readState();
  state.id = wanted.id ?? "";
  state.colour = wanted.colour in points.facets ? wanted.colour : "topic";
  $("colour").value = state.colour;
  hidden.clear();
  legend();
  const n = points.ids.indexOf(state.id);
  if (n >= 0) list([n], "From the address");
  else list([], state.id ? `${state.id} is not on the map` : "Draw a lasso to list pages");
  later();
}

async function start() {
  points = await unpack("points");
  count = points.ids.length;
  $("colour").onchange = () => { state.colour = $("colour").value; hidden.clear(); writeState(state); legend(); later(); };
  $("lasso").onclick = () => setLasso(!lassoing);
  $("closer").onclick = () => zoom(1.4);
  $("farther").onclick = () => zoom(1 / 1.4);
  $("whole").onclick = reset;
  addEventListener("keydown", onKey);
  addEventListener("hashchange", follow);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  fit();
  new ResizeObserver(fit).observe(canvas);
  follow();
  document.body.dataset.ready = "yes";
}
start();
