// The sample browser: a list of groups, of which only the visible ones exist, and the chosen group's outputs side by side.
const ROW = 48, SOME = 200;
const COLOURS = { "": "plain text", advantage: "advantage", mismatch: "mismatch, learner − engine", logprob: "log-probability, engine" };
let groups = [], shown = [], found = null, wanted = "", searching = 0;

// One entry a group of all runs and steps, made from the index once.
function indexGroups() {
  groups = [];
  head.runs.forEach((run, r) => (run.samples ?? []).forEach((part) => {
    const here = part.groups.map((name, place) => ({ run: r, step: part.step, stage: part.stage, name, place, members: [] }));
    part.g.forEach((g, i) => here[g].members.push(i));
    for (const group of here) {
      const of = (key) => group.members.map((i) => part[key][i]), known = of("r").filter((v) => v !== null);
      group.rewards = of("r");
      group.known = known;
      group.mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
      group.long = Math.max(...of("n"));
      group.gap = Math.max(...of("m").map((v) => v ?? -1));
      group.verdicts = new Set(of("v"));
      group.fates = new Set(of("f"));
      group.cut = of("t").some(Boolean);
      const equal = known.length > 1 && known.every((v) => v === known[0]);
      group.kind = !known.length ? "none" : known.length < 2 ? "thin" : !equal ? "mixed" : known[0] > 0 ? "right" : "wrong";
      group.reach = Math.max(...of("a").map((v) => Math.abs(v ?? 0)));
      groups.push(group);
    }
  }));
}

const key = (group) => `${group.run}:${group.step}:${group.name}`;
const SORTS = { "": null, worst: (a, b) => (a.mean ?? 9e9) - (b.mean ?? 9e9), best: (a, b) => (b.mean ?? -9e9) - (a.mean ?? -9e9),
  longest: (a, b) => b.long - a.long, mismatch: (a, b) => b.gap - a.gap, advantage: (a, b) => b.reach - a.reach };
const KINDS = { "": "all groups", mixed: "with spread", right: "all equal, above 0", wrong: "all equal, 0 or less", thin: "one score", none: "no score" };

function passes(group) {
  const [low, high] = get("step").split("-"), has = get("verdict");
  const step = !low || (group.step >= Number(low) && group.step <= Number(get("step").includes("-") ? high || Infinity : low));
  return step && (!get("run") || group.run === Number(get("run"))) && (!get("stage") || group.stage === get("stage")) &&
    (!has || group.verdicts.has(has)) && (!get("fate") || group.fates.has(get("fate") === "trained" ? 1 : 0)) && (!get("kind") || group.kind === get("kind")) &&
    (!get("cut") || group.cut) && (get("min") === "" || group.known.some((v) => v >= Number(get("min")))) && (get("max") === "" || group.known.some((v) => v <= Number(get("max"))));
}

const texts = (data, place, rows) => [data.asked[place].q, data.asked[place].id, data.asked[place].gold, ...rows.flatMap((row) => [row.t ?? "", row.x ?? ""])];

// A word, or /a pattern/ (case does not count).
function matcher(query) {
  const pattern = /^\/(.+)\/$/.exec(query);
  if (!pattern) {
    const word = query.toLowerCase();
    return (text) => text.toLowerCase().includes(word);
  }
  const expression = new RegExp(pattern[1], "i");
  return (text) => expression.test(text);
}

// Reads one part after the other and tells how far it is; a newer search ends it.
async function search(query, ready) {
  const mine = ++searching, parts = head.runs.flatMap((run, r) => (run.samples ?? []).map((part) => ({ r, part })));
  let match;
  try { match = matcher(query); } catch { ready("this is no pattern"); return; }
  found = new Set();
  wanted = query;
  for (const [n, { r, part: index }] of parts.entries()) {
    const data = await part(r, index.step);
    if (mine !== searching) return;
    index.groups.forEach((name, place) => {
      const rows = data.rows.filter((_, i) => index.g[i] === place);
      if (texts(data, place, rows).some(match)) found.add(`${r}:${index.step}:${name}`);
    });
    if (n % 20 === 19) ready(`searching ${n + 1} of ${parts.length} steps`);
  }
  ready("");
}

function select(name, label, options) {
  return h("label", {}, label, h("select", { onchange: (event) => put({ [name]: event.target.value }) },
    Object.entries(options).map(([value, text]) => h("option", { value, selected: get(name) === value }, text))));
}

function field(name, label, props = {}) {
  return h("label", {}, label, h("input", { value: get(name), onchange: (event) => put({ [name]: event.target.value.trim() }), ...props }));
}

function samples() {
  if (!groups.length) return h("p", { class: "dim" }, "No samples are recorded yet.");
  const named = (values) => Object.fromEntries([["", "all"], ...[...new Set(values)].map((v) => [v, v])]);
  const count = h("span", { class: "dim", role: "status" });
  const controls = h("div", { class: "bar" },
    field("q", "search in questions and outputs; /pattern/", { type: "search", id: "search" }),
    several() && select("run", "run", Object.fromEntries([["", "all"], ...head.runs.map((run, r) => [String(r), run.name])])),
    select("stage", "stage", named(groups.map((g) => g.stage))), field("step", "step, as 3 or 10-20", { class: "short" }),
    select("kind", "group", KINDS), select("verdict", "verdict", named(groups.flatMap((g) => [...g.verdicts]))),
    select("fate", "fate", { "": "all", trained: "trained", dropped: "dropped" }),
    field("min", "a reward from", { class: "short", type: "number", step: "any" }), field("max", "to", { class: "short", type: "number", step: "any" }),
    check("cut", "ran out of tokens"),
    select("sort", "order", { "": "of the run", worst: "least mean reward", best: "greatest mean reward", longest: "longest", mismatch: "greatest mismatch", advantage: "greatest |advantage|" }),
    select("colour", "colour of tokens", COLOURS), count);
  const list = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "Groups" }), detail = h("div", { class: "wide", "aria-live": "polite" });
  const space = h("div");
  list.append(space);
  const fill = (message = "") => {
    shown = groups.filter((group) => passes(group) && (!get("q") || found?.has(key(group))));
    if (SORTS[get("sort")]) shown = [...shown].sort(SORTS[get("sort")]);
    space.style.height = `${shown.length * ROW}px`;
    const outputs = shown.reduce((n, group) => n + group.members.length, 0), left = head.runs.reduce((n, run) => n + (run.left_out ?? 0), 0);
    count.textContent = message || `${number(shown.length)} groups, ${number(outputs)} outputs${left ? `; ${number(left)} are not in this file` : ""}`;
    rows(list);
  };
  const chosen = () => shown.findIndex((group) => key(group) === get("group"));
  list.addEventListener("scroll", () => rows(list), { passive: true });
  list.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (!move || !shown.length) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(shown.length - 1, chosen() + move));
    if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
    if ((at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (at + 1) * ROW - list.clientHeight;
    open(list, detail, shown[at]);
  });
  list.addEventListener("click", (event) => {
    const item = event.target.closest(".item");
    if (item) open(list, detail, shown[Number(item.dataset.at)]);
  });
  queueMicrotask(async () => {
    fill(get("q") && wanted !== get("q") ? "searching" : "");
    const first = () => open(list, detail, shown[Math.max(0, chosen())], false);
    if (get("q") && (wanted !== get("q") || !found)) {
      await search(get("q"), (message) => list.isConnected && fill(message));
    }
    if (chosen() > 0) list.scrollTop = Math.max(0, chosen() * ROW - list.clientHeight / 2);
    if (list.isConnected && shown.length) first();
  });
  return [controls, h("div", { class: "browser" }, list, detail)];
}

// Only rows that are seen are made; their questions are read where they are.
function rows(list) {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), end = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 8);
  const there = new Map([...list.querySelectorAll(".item")].map((item) => [`${item.dataset.at}|${item.dataset.key}`, item]));
  for (let at = first; at < end; at++) {
    const group = shown[at], name = `${at}|${key(group)}`;
    let item = there.get(name);
    there.delete(name);
    if (!item) {
      const question = h("div", { class: "line" }, "…");
      item = h("div", { class: "item", role: "option", id: `row-${at}`, "data-at": at, "data-key": key(group) }, question, h("div", { class: "line" },
        h("span", {}, `${several() ? `${head.runs[group.run].name}, ` : ""}step ${group.step}`), dots(group), h("span", {}, `mean ${number(group.mean)}`)));
      item.style.top = `${at * ROW}px`;
      part(group.run, group.step).then((data) => { question.textContent = data.asked[group.place].q.replace(/\s+/g, " ").slice(0, SOME); }, () => {});
      list.append(item);
    }
    item.setAttribute("aria-selected", String(key(group) === get("group")));
  }
  for (const item of there.values()) item.remove();
}

function grade(reward, group) {
  if (reward === null) return "";
  const low = Math.min(...group.known), high = Math.max(...group.known);
  return low === high ? (reward > 0 ? "hi" : "lo") : reward === high ? "hi" : reward === low ? "lo" : "mid";
}

const dots = (group) => h("span", { class: "dots", title: `rewards ${group.rewards.slice(0, 64).map((v) => number(v)).join(", ")}` }, group.rewards.slice(0, 24).map((v) => h("i", { class: grade(v, group) })));

async function open(list, detail, group, moved = true) {
  if (moved || get("group") !== key(group)) put({ group: key(group) }, false);
  rows(list);
  const index = head.runs[group.run].samples.find((part) => part.step === group.step), data = await part(group.run, group.step);
  if (get("group") !== key(group)) return;
  const asked = data.asked[group.place];
  const reach = Math.max(1e-9, group.reach);
  detail.replaceChildren(
    h("div", { class: "facts" }, fact("group", group.name), fact("step", group.step), fact("question", asked.id), fact("reference", asked.gold), fact("mean reward", number(group.mean))),
    h("div", { class: "question" }, asked.q), legend(),
    h("div", { class: "cards" }, group.members.map((i) => card(data.rows[i], index, i, group, reach))));
  if (!document.body.dataset.firstSample) document.body.dataset.firstSample = performance.now().toFixed(0);
}

const fact = (name, value) => h("span", {}, `${name} `, h("b", {}, value === null || value === undefined ? "–" : String(value)));

function legend() {
  const says = { advantage: "Green: advantage above 0, red: below, as strong as the group's greatest.", mismatch: "Orange: |log π_learner − log π_engine|, from 0.0001 (faint) to 1 nat; point at a token for its value.",
    logprob: "Purple: how unlikely the engine found its token, full at 5 nats." }[get("colour")];
  return says ? h("p", { class: "dim" }, says) : "";
}

function card(row, index, i, group, reach) {
  const versions = row.v.map(([version, at]) => (at ? `${version} from token ${at}` : `${version}`)).join(", ");
  const said = h("div", { class: "said", tabindex: 0 });
  write(said, row, reach);
  return h("article", { class: `card ${grade(index.r[i], group)}` },
    h("div", { class: "facts" }, fact("output", row.i), fact("reward", number(index.r[i])), fact("advantage", number(index.a[i])), fact("answer", row.x), fact("verdict", index.v[i])),
    said,
    h("div", { class: "facts" }, Object.entries(row.c ?? {}).map(([name, value]) => fact(name, number(value))), fact("tokens", index.n[i]), fact("ended", row.end), fact("weights", versions),
      row.w !== undefined && fact("reward model", row.w), row.try > 0 && fact("attempt", row.try), index.m[i] !== null && fact("largest mismatch", `${number(index.m[i])} nats`), fact("fate", index.f[i] ? "trained" : "dropped")),
    row.e?.length > 1 && h("div", { class: "facts" }, row.e.map(([at, value], n) => fact(`step ${n + 1}, to token ${at}`, number(value)))),
    row.why && h("div", { class: "dim" }, row.why));
}

// A character a token (see LEAST in outputs.py): 0, then magnitudes from 1e-7 on, 11 a decade; the negative ones behind.
function level(code) {
  const c = code - 48;
  if (c < 0 || Number.isNaN(c)) return null;
  const at = c >= 95 ? c - 95 : c;
  return at === 0 ? 0 : (c >= 95 ? -1 : 1) * 1e-7 * 10 ** ((at - 1) / 11);
}

function tint(how, row, k, reach) {
  if (how === "advantage") {
    const a = advantageAt(row, k);
    return a === null || a === 0 ? "" : `color-mix(in srgb, var(--${a > 0 ? "good" : "bad"}) ${Math.round(10 + (45 * Math.abs(a)) / reach)}%, transparent)`;
  }
  const value = level((how === "mismatch" ? row.m : row.p)?.charCodeAt(k));
  if (value === null || value === 0) return "";
  const share = how === "mismatch" ? (Math.log10(Math.abs(value)) + 4) / 4 : -value / 5;
  return share <= 0 ? "" : `color-mix(in srgb, var(--${how === "mismatch" ? "c1" : "c3"}) ${Math.round(Math.min(1, share) * 65)}%, transparent)`;
}

function advantageAt(row, k) {
  let value = null;
  for (const [first, a] of row.adv ?? []) if (first <= k) value = a;
  return value;
}

// The text, a span a token where the tokens' texts are known, with the steps of process supervision where they end.
function write(target, row, reach) {
  const how = get("colour"), text = row.t ?? "";
  if (!row.n || (!how && !(row.e?.length > 1) && !row.tool)) { target.textContent = text; return; }
  const ends = new Map((row.e?.length > 1 ? row.e : []).map(([at, value], n) => [at, `step ${n + 1}: ${number(value)}`]));
  const tool = new Set(row.tool), byTool = (k) => tool.has(k);
  let at = 0;
  row.n.forEach((size, k) => {
    const piece = text.slice(at, at + size), colour = how && tint(how, row, k, reach);
    at += size;
    if (piece) {
      const span = h("span", { class: byTool(k) && "tool" }, piece);
      if (colour) span.style.backgroundColor = colour;
      const p = level(row.p?.charCodeAt(k)), m = level(row.m?.charCodeAt(k)), a = advantageAt(row, k);
      span.title = [`token ${k}`, p !== null && `log-probability ${number(p, 2)}`, m !== null && `mismatch ${number(m, 2)}`, a !== null && `advantage ${number(a)}`].filter(Boolean).join(", ");
      target.append(span);
    }
    if (ends.has(k)) target.append(h("span", { class: "step" }, ends.get(k)));
  });
}

const VIEWS = { curves, time, ledger, config, samples };

function show(renewed = false) {
  const tab = get("tab", "curves") in VIEWS ? get("tab", "curves") : "curves";
  const y = scrollY;
  document.getElementById("title").textContent = head.runs.map((run) => run.name).join(" | ");
  const last = head.runs[0].stages.at(-1)?.steps.at(-1) ?? 0;
  document.getElementById("state").textContent = several() ? `${head.runs.length} runs` : `${head.runs[0].state ?? (head.runs[0].finished ? "finished" : "not finished")}, ${last} steps`;
  document.getElementById("tabs").replaceChildren(...Object.entries(TABS).map(([name, label]) => h("a", { href: `#tab=${name}`, "aria-current": name === tab && "page",
    onclick: (event) => { event.preventDefault(); put({ tab: name }); } }, label)));
  if (renewed || !groups.length) { indexGroups(); found = null; wanted = ""; }
  if (renewed && tab === "samples" && main.contains(document.activeElement)) return;
  main.replaceChildren(...[VIEWS[tab]()].flat(9).filter(Boolean));
  if (renewed) scrollTo(0, y);
  document.body.dataset.ready = tab;
}

addEventListener("hashchange", () => {
  state.clear();
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) state.set(name, value);
  show();
});
let resizing = 0;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(() => get("tab") === "samples" || show(), 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) { put({ tab: "samples" }); document.getElementById("search")?.focus(); event.preventDefault(); }
});
load().then(() => { show(); if (LIVE) follow(); }, (error) => { main.textContent = `The page's data cannot be read: ${error.message}`; throw error; });
