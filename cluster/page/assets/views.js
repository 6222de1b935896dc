// The parts of the page but the sample browser: curves, time, ledger and alarms, configuration.
const main = document.getElementById("main");
const TABS = { curves: "Curves", time: "Time", ledger: "Ledger and alarms", config: "Configuration", samples: "Samples" };
const several = () => head.runs.length > 1;
const measured = (column) => column?.some((v) => v !== null && v !== undefined);

function chartWidth() {
  const room = main.clientWidth - (matchMedia("(max-width: 760px)").matches ? 16 : 32);
  const columns = Math.max(1, Math.floor((room + 12) / 392));
  return Math.floor((room - 12 * (columns - 1)) / columns) - 22;
}

// The stages of all runs by name, in order: [{name, of: [{run, stage}]}].
function stagesByName() {
  const out = [];
  head.runs.forEach((run) => {
    const seen = new Map();
    for (const stage of run.stages) {
      const time = seen.get(stage.name) ?? 0;
      seen.set(stage.name, time + 1);
      const found = out.find((s) => s.name === stage.name && s.time === time);
      if (found) found.of.push({ run, stage });
      else out.push({ name: stage.name, time, of: [{ run, stage }] });
    }
  });
  return out;
}

function lineOf({ run, stage }, metric, label, more = {}) {
  return measured(stage.columns[metric]) && { label, x: stage.steps, y: stage.columns[metric], ...more };
}

// What names begin with in common.
function shared(names) {
  let end = 0;
  while (end < names[0].length && names.every((name) => name[end] === names[0][end])) end++;
  return `${names[0].slice(0, end)}*`;
}

// Of several runs: one line an experiment, its seeds' mean with the range from the least to the greatest.
function overSeeds(of, metric) {
  const experiments = [...new Set(head.runs.map((run) => run.experiment))];
  return experiments.flatMap((experiment, colour) => {
    const mine = of.filter(({ run, stage }) => run.experiment === experiment && measured(stage.columns[metric]));
    if (!mine.length) return [];
    const each = mine.map((one) => lineOf(one, metric, one.run.name, { colour }));
    if (each.length === 1) return each;
    const x = [...new Set(each.flatMap((s) => s.x))].sort((a, b) => a - b);
    const places = each.map((s) => new Map(s.x.map((v, k) => [v, s.y[k]])));
    const at = x.map((v) => places.map((place) => place.get(v)).filter((y) => y !== null && y !== undefined));
    const fold = (how) => at.map((ys) => (ys.length ? how(ys) : null));
    const spread = { label: `${shared(mine.map(({ run }) => run.name))}, ${mine.length} seeds`, colour, x,
      y: fold((ys) => ys.reduce((a, b) => a + b) / ys.length), low: fold((ys) => Math.min(...ys)), high: fold((ys) => Math.max(...ys)) };
    return get("each") ? [spread, ...each.map((s) => ({ ...s, faint: true }))] : [spread];
  });
}

const unitOf = (metric) => head.metrics[metric]?.[1] ?? "";
const logarithmic = (metric) => /^mismatch|^canary/.test(metric);

function heldOut({ run, stage }) {
  const rows = run.evaluations.filter((row) => row.step >= stage.steps[0] - 1 && row.step <= stage.steps.at(-1));
  const of = (key, label, error) => {
    const known = rows.filter((row) => row[key] !== null && row[key] !== undefined);
    const off = (sign) => known.map((row) => row[key] + sign * 1.96 * (row.accuracy_standard_error ?? 0));
    return known.length > 0 && { label, x: known.map((row) => row.step), y: known.map((row) => row[key]), dots: true, ...(error ? { low: off(-1), high: off(1) } : {}) };
  };
  return [of("accuracy", "held out, sampled", true), of("greedy_accuracy", "held out, greedy", false)];
}

function oneRun(one, width) {
  const accuracy = [lineOf(one, "accuracy", "training outputs", { faint: true }), ...heldOut(one)].filter(Boolean);
  const charts = accuracy.length ? [chart({ title: "Accuracy", unit: "share; held out ± 1.96 standard errors", series: accuracy, zero: true, top: 1 }, width)] : [];
  for (const { title, lines } of head.panels) {
    const series = Object.entries(lines).map(([metric, label]) => lineOf(one, metric, label)).filter(Boolean);
    const unit = unitOf(Object.keys(lines).find((metric) => unitOf(metric))), stale = /^Staleness|^Busy/.test(title);
    if (series.length && !(stale && !one.stage.columns.staleness_max?.some((v) => v > 0))) {
      charts.push(chart({ title, unit: title.includes("(") ? "" : unit, series, log: Object.keys(lines).some(logarithmic) }, width));
    }
  }
  return charts;
}

function manyRuns(of, width) {
  const shown = [...new Set(["accuracy", ...head.panels.flatMap(({ lines }) => Object.keys(lines))])];
  return shown.map((metric) => metricChart(of, metric, width)).filter(Boolean);
}

function metricChart(of, metric, width) {
  const series = several() ? overSeeds(of, metric) : [lineOf(of[0], metric, metric)].filter(Boolean);
  return series.length > 0 && chart({ title: metric, unit: unitOf(metric), about: head.metrics[metric]?.[0], series, log: logarithmic(metric) }, width);
}

function atK(width) {
  const charts = [];
  for (const [prefix, title] of [["pass_at_", "Pass@K"], ["maj_at_", "Maj@K"]]) {
    const series = head.runs.flatMap((run, r) => {
      const rows = run.evaluations.filter((row) => row[`${prefix}1`] !== null && row[`${prefix}1`] !== undefined);
      const ends = rows.length > 1 ? [rows[0], rows.at(-1)] : rows;
      return ends.map((row, i) => {
        const ks = Object.keys(row).filter((key) => key.startsWith(prefix)).map((key) => Number(key.slice(prefix.length))).sort((a, b) => a - b);
        return { label: `${several() ? `${run.name}, ` : ""}step ${row.step}`, colour: several() ? r : i, dash: i === 0 && rows.length > 1, x: ks, y: ks.map((k) => row[prefix + k]), dots: true };
      });
    });
    if (series.length) charts.push(chart({ title, unit: "share of held-out questions", x: "K", logx: true, series }, width));
  }
  return charts;
}

function evaluationsTable() {
  const names = ["n", "samples", "accuracy", "accuracy_standard_error", "greedy_accuracy", "well_formed", "truncated", "response_length", "unjudged"];
  const rows = head.runs.flatMap((run) => run.evaluations.map((row) => [`${several() ? `${run.name}, ` : ""}${row.stage ?? ""} step ${row.step}`, ...names.map((name) => number(row[name]))]));
  return rows.length ? table(["evaluation", ...names.map((name) => name.replaceAll("_", " "))], rows) : h("p", { class: "dim" }, "No evaluation yet.");
}

const check = (name, label) => h("label", { class: "check" }, h("input", { type: "checkbox", checked: Boolean(get(name)), onchange: (event) => put({ [name]: event.target.checked ? "1" : "" }) }), label);

function curves() {
  const width = chartWidth(), alarms = head.runs.reduce((n, run) => n + run.alarms.length, 0);
  const out = [alarms > 0 && h("p", { class: "alarm" }, `${alarms} alarm${alarms > 1 ? "s" : ""}: `, h("a", { href: "#tab=ledger" }, "what and what to do"))];
  if (several()) out.push(table(["", ...head.runs.map((run) => run.name)], head.table, "Runs side by side"));
  out.push(h("div", { class: "bar" }, check("all", "every metric"), several() && check("each", "each run's line")));
  const stages = stagesByName();
  // What is trained last is looked at first; a warm start stands below it.
  for (const { name, of } of stages.toReversed()) {
    const steps = of.flatMap(({ stage }) => [stage.steps[0], stage.steps.at(-1)]);
    const metrics = [...new Set(of.flatMap(({ stage }) => Object.keys(stage.columns)))];
    const charts = get("all") ? metrics.map((metric) => metricChart(of, metric, width)) : several() ? manyRuns(of, width) : oneRun(of[0], width);
    out.push(h("section", {}, h("h2", {}, name || "run", h("small", {}, ` steps ${Math.min(...steps)}–${Math.max(...steps)}`)), h("div", { class: "grid-of" }, charts)));
  }
  out.push(h("section", {}, h("h2", {}, "Held-out evaluations"), h("div", { class: "grid-of" }, atK(width)), evaluationsTable()));
  return out;
}

const LANES = { generate: "engines sample", score: "reward actors score", train: "the learner trains", sync: "weights are sent", waiting: "the learner waits", other: "nothing is under way" };

// Where each step stands on the wall clock: it ended at `time`, which is told to a second, and took seconds_step.
function spans(run) {
  let end = 0;
  return run.stages.flatMap((stage) => stage.steps.map((step, k) => {
    const at = stage.times[k] ? Date.parse(stage.times[k]) / 1000 : null, took = stage.columns.seconds_step?.[k] ?? 0;
    const start = at === null ? end : Math.max(end, at - took);
    end = start + took;
    return { step, stage, k, start, end };
  }));
}

function timeline(run) {
  const steps = spans(run), lanes = Object.keys(LANES).filter((lane) => run.stages.some((stage) => measured(stage.columns[`seconds_${lane}`])));
  if (!steps.length || !lanes.length) return h("p", { class: "dim" }, "No seconds were measured.");
  const room = main.clientWidth - (matchMedia("(max-width: 760px)").matches ? 18 : 34), tall = 30, label = 132, height = tall * lanes.length + 22, scale = devicePixelRatio || 1;
  const canvas = h("canvas", { width: room * scale, height: height * scale, tabindex: 0, role: "img", "aria-label": "Timeline: share of each step in which each part worked" });
  canvas.style.height = `${height}px`;
  const said = h("p", { class: "dim", role: "status" }, "Height: the share of a step in which this was under way. Point at a step, or use the arrow keys.");
  const from = steps[0].start, to = steps.at(-1).end, X = (t) => label + ((t - from) / (to - from || 1)) * (room - label - 8);
  const css = getComputedStyle(document.documentElement), colour = (name) => css.getPropertyValue(name);
  const draw = (chosen) => {
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, room, height);
    pen.font = "12px system-ui, sans-serif";
    lanes.forEach((lane, row) => {
      pen.fillStyle = colour("--text");
      pen.fillText(LANES[lane], 8, row * tall + 20);
      pen.fillStyle = colour(`--c${row}`);
      for (const { stage, k, start, end } of steps) {
        const share = Math.min(1, (stage.columns[`seconds_${lane}`]?.[k] ?? 0) / (end - start || 1)), size = share * (tall - 6);
        pen.fillRect(X(start), row * tall + tall - 2 - size, Math.max(0.5, X(end) - X(start) - (X(end) - X(start) > 4 ? 1 : 0)), size);
      }
      pen.fillStyle = colour("--line");
      pen.fillRect(label, row * tall + tall - 2, room - label - 8, 1);
    });
    pen.fillStyle = colour("--dim");
    for (const t of ticks(0, Math.max(to - from, 1e-3), 6)) pen.fillText(`${number(t)} s`, Math.min(X(from + t), room - 40), height - 6);
    if (chosen) { pen.strokeStyle = colour("--text"); pen.strokeRect(X(chosen.start), 1, Math.max(2, X(chosen.end) - X(chosen.start)), tall * lanes.length - 2); }
  };
  let at = -1;
  const read = (index) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const { step, stage, k, start, end } = steps[at], seconds = lanes.map((lane) => `${LANES[lane]} ${number(stage.columns[`seconds_${lane}`]?.[k])} s`);
    said.textContent = `${stage.name} step ${step}, ${number(start - from, 4)}–${number(end - from, 4)} s: ${seconds.join(", ")}`;
    draw(steps[at]);
  };
  canvas.addEventListener("pointermove", (event) => {
    const t = from + ((event.offsetX - label) / (room - label - 8)) * (to - from), found = steps.findIndex(({ end }) => end >= t);
    read(found < 0 ? steps.length - 1 : found);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (move) { read(at + move); event.preventDefault(); }
  });
  draw(null);
  return h("div", {}, canvas, said);
}

function time() {
  const width = chartWidth();
  return head.runs.flatMap((run) => {
    const sum = (stage, name) => (stage.columns[`seconds_${name}`] ?? []).reduce((a, b) => a + (b ?? 0), 0);
    const parts = [...head.phases, "waiting", "step"];
    const share = (stage, name) => `${number(sum(stage, name))} s${name === "step" ? "" : `, ${number((100 * sum(stage, name)) / (sum(stage, "step") || 1), 2)} %`}`;
    const charts = run.stages.map((stage) => {
      const ahead = stage.columns.staleness_max?.some((v) => v > 0), phases = [...head.phases, ...(ahead ? ["waiting", "step"] : [])];
      const series = phases.map((name) => lineOf({ run, stage }, `seconds_${name}`, name)).filter(Boolean);
      return series.length > 0 && chart({ title: `${stage.name}: ${ahead ? "seconds of each step, phases overlap" : "seconds of each step, stacked"}`, unit: "s", series, stack: !ahead, zero: true }, width);
    });
    const whole = Object.entries(run.summary?.seconds ?? {}).map(([name, seconds]) => [name, number(seconds)]);
    return [h("h2", {}, several() ? run.name : "Who worked and who waited"), timeline(run),
      h("p", { class: "dim" }, "Between steps: evaluations, checkpoints, and pauses of the run."),
      table(["stage", ...parts], run.stages.map((stage) => [stage.name, ...parts.map((name) => share(stage, name))]), "Seconds by phase; phases may overlap where outputs are sampled ahead"),
      whole.length > 0 && table(["of the whole run", "seconds"], whole), h("div", { class: "grid-of" }, charts)];
  });
}

function ledger() {
  const stretches = (bounds) => bounds.map(([a, b]) => (a === b ? a : `${a}–${b}`)).join(", ") || "none";
  return head.runs.flatMap((run) => [
    several() && h("h2", {}, run.name), h("h3", {}, "Alarms"),
    run.alarms.length ? run.alarms.map((row) => h("div", { class: "alarm" }, h("b", {}, `step ${row.step}: ${row.alarm}`), h("div", {}, row.what ?? ""), h("div", { class: "dim" }, row.advice ?? ""))) : h("p", { class: "dim" }, "None."),
    h("h3", {}, "Ledger: what became of every sample"),
    run.ledger ? [h("p", { class: run.ledger.holds ? "good" : "bad" }, run.ledger.verdict),
      table(["", ...Object.keys(run.ledger.stages)], [
        ["ordinals asked", ...Object.values(run.ledger.stages).map((s) => stretches(s.ordinals_asked))],
        ["ordinals trained", ...Object.values(run.ledger.stages).map((s) => stretches(s.ordinals_trained))],
        ...Object.keys(Object.values(run.ledger.stages)[0]?.samples ?? {}).map((what) => [what, ...Object.values(run.ledger.stages).map((s) => number(s.samples[what] ?? 0))]),
        ["dropped because", ...Object.values(run.ledger.stages).map((s) => Object.entries(s.dropped_because).map(([why, n]) => `${n} ${why}`).join("; ") || "of nothing")]]),
      run.ledger.scaled.length > 0 && table(["workers", "from", "to", "after step"], run.ledger.scaled.map((s) => [s.role, s.from, s.to, s.step]))]
      : h("p", { class: "dim" }, "This run has no ledger.")]);
}

function config() {
  const out = [];
  if (several()) out.push(h("h2", {}, "Where the configurations differ"), head.differences.length ? table(["key", ...head.runs.map((run) => run.name)], head.differences) : h("p", { class: "dim" }, "Nowhere."));
  for (const run of head.runs) {
    const { seconds, versions, ...facts } = run.summary ?? {};
    out.push(h("h2", {}, several() ? run.name : "Configuration"), h("p", { class: "dim" }, run.dir), h("pre", { tabindex: 0 }, run.config || "config.yaml is missing"));
    if (run.summary) out.push(h("details", {}, h("summary", {}, "summary.json"), h("pre", {}, JSON.stringify(facts, null, 1))));
  }
  return out;
}
