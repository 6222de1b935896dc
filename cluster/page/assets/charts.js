// Charts: SVG with axes and units; the legend shows the values under the pointer, or where the arrow keys stand.
const HEIGHT = 210, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 30;

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(12)));
  return out;
}

function powers(low, high, base) {
  const first = Math.floor(Math.log(low) / Math.log(base) + 1e-9), last = Math.ceil(Math.log(high) / Math.log(base) - 1e-9);
  const every = Math.max(1, Math.ceil((last - first) / 5));
  return Array.from({ length: last - first + 1 }, (_, i) => base ** (first + i)).filter((_, i) => i % every === 0);
}

// A line with more points than pixels keeps the least and the greatest of each pixel.
function thin(points, width) {
  if (points.length <= 2 * width) return points;
  const size = Math.ceil(points.length / width), out = [];
  for (let i = 0; i < points.length; i += size) {
    const some = points.slice(i, i + size).filter(([, y]) => y !== null);
    if (!some.length) { out.push([points[i][0], null]); continue; }
    const low = some.reduce((a, b) => (b[1] < a[1] ? b : a)), high = some.reduce((a, b) => (b[1] > a[1] ? b : a));
    out.push(...(low[0] < high[0] ? [low, high] : [high, low]));
  }
  return out;
}

// {title, unit, x, series: [{label, x, y, low, high, dots, faint}], log, logx, zero, top, stack}
function chart(spec, width) {
  // A line that lies on an earlier one is dashed, so that both are seen.
  const covers = (s, i) => spec.series.some((other, k) => k < i && !other.dots && String(other.y) === String(s.y));
  const series = spec.stack ? stacked(spec.series) : spec.series.map((s, i) => ({ ...s, dash: s.dash || covers(s, i) }));
  const finite = (list) => list.filter((y) => y !== null && y !== undefined && Number.isFinite(y) && (!spec.log || y > 0));
  const ys = finite(series.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]));
  const xs = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  let low = ys.reduce((a, b) => Math.min(a, b), Infinity), high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!ys.length) [low, high] = [0, 1];
  if (spec.zero || (low > 0 && !spec.log && low < 0.4 * high)) low = Math.min(0, low);
  if (spec.top !== undefined) high = Math.max(high, spec.top);
  if (low === high) [low, high] = spec.log ? [low / 2, high * 2] : [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  const marksY = spec.log ? powers(low, high, 10) : ticks(low, high, 4);
  if (spec.log) [low, high] = [Math.min(low, marksY[0]), Math.max(high, marksY.at(-1))];
  let [first, end] = [xs[0] ?? 0, xs.at(-1) ?? 1];
  if (first === end) [first, end] = spec.logx ? [first / 2, end * 2] : [first - 1, end + 1];
  const fx = spec.logx ? Math.log : (v) => v, fy = spec.log ? (v) => Math.log(Math.max(v, low)) : (v) => v;
  const X = (v) => LEFT + ((fx(v) - fx(first)) / (fx(end) - fx(first))) * (width - LEFT - RIGHT);
  const Y = (v) => HEIGHT - BOTTOM - ((fy(v) - fy(low)) / (fy(high) - fy(low))) * (HEIGHT - TOP - BOTTOM);
  const p = (x, y) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`;
  const marksX = spec.logx ? xs : ticks(first, end, Math.max(2, width / 90)).filter((v) => spec.x !== "step" || Number.isInteger(v));
  const places = Math.max(0, -Math.floor(Math.log10(marksY[1] - marksY[0]) + 1e-9)), large = Math.max(Math.abs(low), Math.abs(high));
  const said = (v) => (spec.log || large >= 1e5 || large < 1e-3 ? (v === 0 ? "0" : v.toExponential(Number(v.toPrecision(1)) === v ? 0 : 1)) : v.toFixed(places));
  const grid = [
    marksY.map((v) => [h("svg:line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: Y(v), y2: Y(v) }),
      h("svg:text", { x: LEFT - 5, y: Y(v) + 4, "text-anchor": "end" }, said(v))]),
    marksX.map((v) => [h("svg:line", { class: "grid", x1: X(v), x2: X(v), y1: TOP, y2: HEIGHT - BOTTOM }),
      h("svg:text", { x: X(v), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, number(v))]),
    h("svg:text", { x: width - RIGHT, y: HEIGHT - 3, "text-anchor": "end", class: "unit" }, spec.x ?? "step"),
  ];
  const drawn = series.map((s, i) => drawSeries(s, i, { p, X, Y, width, log: spec.log }));
  const cursor = h("svg:line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 });
  const values = series.map(() => h("span", { class: "value" }));
  const where = h("span", { class: "value" });
  const legend = h("figcaption", {}, series.map((s, i) => h("span", { class: "key" }, h("i", { class: `k${(s.colour ?? i) % 8}` }), s.label, " ", values[i])), where);
  const svg = h("svg:svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", tabindex: 0,
    "aria-label": `${spec.title}: ${series.map((s) => `${s.label}, last ${number(s.y.at(-1))}`).join("; ")}` }, grid, drawn, cursor);
  let at = xs.length - 1;
  const read = (index) => {
    at = Math.max(0, Math.min(xs.length - 1, index));
    const x = xs[at];
    cursor.setAttribute("x1", X(x)); cursor.setAttribute("x2", X(x));
    where.textContent = `${spec.x ?? "step"} ${number(x)}`;
    series.forEach((s, i) => {
      const k = s.x.indexOf(x), y = spec.stack ? spec.series[i].y[k] : s.y[k];
      values[i].textContent = k < 0 ? "" : number(y) + (s.low && s.high && k >= 0 && s.low[k] !== null ? ` (${number(s.low[k])}…${number(s.high[k])})` : "");
    });
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) * width) / box.width;
    let best = 0;
    for (let i = 1; i < xs.length; i++) if (Math.abs(X(xs[i]) - x) < Math.abs(X(xs[best]) - x)) best = i;
    if (xs.length) read(best);
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (move && xs.length) { read(at + move); event.preventDefault(); }
  });
  return h("figure", { class: "chart" }, h("h4", { title: spec.about }, spec.title, spec.unit && h("small", {}, ` ${spec.unit}`)), svg, legend);
}

function drawSeries(s, i, { p, X, Y, width, log }) {
  const c = (s.colour ?? i) % 8, ok = (y) => y !== null && y !== undefined && (!log || y > 0), out = [];
  if (s.area) {
    const there = s.x.map((x, k) => p(x, s.high[k])), back = s.x.map((x, k) => p(x, s.low[k])).reverse();
    return h("svg:polygon", { class: `f${c} area`, points: [...there, ...back].join(" ") });
  }
  if (s.low && !s.dots) {
    const known = s.x.map((_, k) => k).filter((k) => ok(s.low[k]) && ok(s.high[k]));
    out.push(h("svg:polygon", { class: `f${c} band`, points: [...known.map((k) => p(s.x[k], s.high[k])), ...known.reverse().map((k) => p(s.x[k], s.low[k]))].join(" ") }));
  }
  let path = "", pen = "M";
  for (const [x, y] of thin(s.x.map((x, k) => [x, s.y[k]]), width)) {
    if (ok(y)) { path += pen + p(x, y); pen = "L"; } else pen = "M";
  }
  out.push(h("svg:path", { class: `s${c}${s.faint ? " faint" : ""}${s.dash ? " dash" : ""}`, d: path }));
  if (s.dots || s.x.length === 1) {
    s.x.forEach((x, k) => {
      if (!ok(s.y[k])) return;
      if (s.low && ok(s.low[k])) out.push(h("svg:line", { class: `s${c}`, x1: X(x), x2: X(x), y1: Y(s.low[k]), y2: Y(s.high[k]) }));
      out.push(h("svg:circle", { class: `f${c}`, cx: X(x), cy: Y(s.y[k]), r: 3 }));
    });
  }
  return out;
}

function stacked(series) {
  let below = series[0].x.map(() => 0);
  return series.map((s) => {
    const high = s.y.map((y, k) => below[k] + (y ?? 0)), out = { ...s, area: true, low: below, high, y: high };
    below = high;
    return out;
  });
}
