"use strict";
// Data, the address's state, and making elements. Text of the data becomes text nodes only: nothing here writes markup.
const LIVE = document.body.dataset.live === "1";
const SVG = "http://www.w3.org/2000/svg";

function h(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
}

function table(heads, rows, caption) {
  const cells = (row) => row.map((cell, i) => h(i ? "td" : "th", i ? {} : { scope: "row" }, cell instanceof Node ? cell : String(cell)));
  return h("div", { class: "scroll", tabindex: 0 }, h("table", {}, caption && h("caption", {}, caption),
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, cells(row))))));
}

// The address: everything that a link should open again.
const state = new Map(new URLSearchParams(location.hash.slice(1)));
const get = (name, otherwise = "") => state.get(name) ?? otherwise;
function put(changes, redraw = true) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null || value === false) state.delete(name);
    else state.set(name, String(value));
  }
  history.replaceState(null, "", `#${new URLSearchParams([...state])}`);
  if (redraw) show();
}

// Data: gzipped JSON, in the page or from the server that serves it.
async function unpack(stream) {
  return JSON.parse(await new Response(stream.pipeThrough(new DecompressionStream("gzip"))).text());
}

async function block(name) {
  let element;
  while (!(element = document.getElementById(name))?.nextSibling && document.readyState === "loading") {
    await new Promise((done) => setTimeout(done, 5));
  }
  const raw = atob(element.textContent);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return unpack(new Blob([bytes]).stream());
}

async function fetched(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

let head = null;
const kept = new Map();
const KEPT = 64;

function part(run, step) {
  const name = `part-${run}-${step}`;
  if (!kept.has(name)) {
    kept.set(name, LIVE ? fetched(`part/${run}/${step}`) : block(name));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    kept.get(name).catch(() => kept.delete(name));
  }
  return kept.get(name);
}

async function load() {
  head = LIVE ? await fetched("head") : await block("head");
}

async function follow() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 2000));
    try {
      const { version } = await fetched("version");
      if (version === head.version || document.hidden) continue;
      await load();
      kept.clear();
      show(true);
    } catch (error) {
      document.getElementById("state").textContent = "the server has ended; the page shows what it had";
    }
  }
}
