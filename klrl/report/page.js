"use strict";
// What is in the charts of a report: curves of runs by variant, their targets, audits; and the switches beside them.
(async () => {
const data = JSON.parse(document.getElementById("data").textContent);

const state = {
  envs: new Set(data.envs.keys()), variants: new Set(data.variants.keys()),
  mode: document.querySelector("[name=mode]:checked")?.value, log: false,
};

const svg = (kind, v) => swatchOf(kind, v === null ? style("--ink") : colour(v), kind === "target" ? [2, 3] : dash(v ?? 0));

async function decoded() {
  const text = atob(document.getElementById("numbers").textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const buffer = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  let at = 0;
  return data.lengths.map(length => {
    at += 4 * length;
    return new Float32Array(buffer, at - 4 * length, length);
  });
}
const arrays = await decoded();
const numbers = i => arrays[i];

function legends() {
  for (const box of document.querySelectorAll("[data-variant]"))
    box.parentElement.querySelector(".swatch").innerHTML = svg("line", Number(box.dataset.variant));
  for (const swatch of document.querySelectorAll("[data-direction]"))
    swatch.innerHTML = svg("line", Number(swatch.dataset.direction));
  for (const list of document.querySelectorAll(".legend")) {
    list.replaceChildren();
    const add = (picture, words) => {
      const item = document.createElement("li");
      item.innerHTML = picture;
      item.append(words);
      list.append(item);
    };
    for (const v of state.variants) add(svg("line", v), data.variants[v]);
    if (list.parentElement.id === "drift") {
      add(svg("target", null), "target");
      add(svg("mark", null), "update beyond its target");
    }
  }
}

function tooltip(chart, more) {
  const y = "{0.[00000]}", x = chart.x.startsWith("KL") ? "{0.[0000]}" : "{0,0}";
  return [["variant", "@name"], ...more(y), [chart.x, "$snap_x" + x]];
}

function chartOf(chart) {
  const log = state.log && chart.log;
  const y_range = new Bokeh.DataRange1d({only_visible: true, ...(chart.log && !log ? {start: 0} : {})});
  return figureOf(chart, {log, counts: !chart.x.startsWith("KL"), y_range});
}

function addRuns(figure, chart, curves, v, layers) {
  const runs = curves.runs.filter(run => run[0] === v);
  if (!runs.length) return;
  const renderer = figure.multi_line({field: "xs"}, {field: "ys"}, {
    source: source({
      xs: runs.map(run => numbers(run[2])), ys: runs.map(run => numbers(run[3])),
      name: runs.map(() => data.variants[v]), seed: runs.map(run => run[1] || "–"),
    }),
    line_color: colour(v), line_dash: {value: dash(v)}, line_width: 1.4, line_alpha: runs.length > 1 ? 0.65 : 1,
  });
  figure.add_tools(new Bokeh.HoverTool({
    renderers: [renderer], line_policy: "nearest", visible: false,
    tooltips: tooltip(chart, y => [["seed", "@seed"], [chart.unit, "$snap_y" + y]]),
  }));
  layers.push({renderer, v});
}

function smallest(curves) {
  return curves.runs.flatMap(run => [...numbers(run[3])]).reduce((a, b) => (b > 0 && b < a ? b : a), Infinity);
}

function addMean(figure, chart, curves, v, layers) {
  const found = curves.means.find(mean => mean[0] === v);
  if (!found) return;
  const [x, mean, low, high, n] = found.slice(1).map(numbers);
  const inside = [...x.keys()].filter(i => Number.isFinite(low[i]));
  // A logarithmic axis has no place for an end at or below 0: the band goes down to the smallest value of all runs.
  const floor = state.log && chart.log ? smallest(curves) : -Infinity;
  if (inside.length) {
    const band = figure.varea({field: "x"}, {field: "low"}, {field: "high"}, {
      source: source({
        x: inside.map(i => x[i]), low: inside.map(i => Math.max(low[i], floor)), high: inside.map(i => high[i]),
      }),
      fill_color: colour(v), fill_alpha: dark.matches ? 0.25 : 0.17,
    });
    layers.push({renderer: band, v});
  }
  const interval = [...x.keys()].map(i =>
    Number.isFinite(low[i]) ? `${short(low[i])} to ${short(high[i])}` : "none: too few seeds");
  const renderer = figure.line({field: "x"}, {field: "mean"}, {
    source: source({x, mean, n, interval, name: Array(x.length).fill(data.variants[v])}),
    line_color: colour(v), line_dash: dash(v), line_width: 2.2,
  });
  figure.add_tools(new Bokeh.HoverTool({
    renderers: [renderer], line_policy: "nearest", visible: false,
    tooltips: tooltip(chart, y => [[chart.unit, "$snap_y" + y], ["95 % interval", "@interval"], ["seeds", "@n"]]),
  }));
  layers.push({renderer, v});
}

function addTargets(figure, chart, curves, layers) {
  const lines = new Map();  // one line for all variants with the same target
  for (const [v, x, y] of curves.targets) {
    const key = `${x} ${y}`;
    if (!lines.has(key)) lines.set(key, {x, y, of: new Set()});
    lines.get(key).of.add(v);
  }
  for (const {x, y, of} of lines.values()) {
    const [v] = of, own = lines.size > 1;
    const renderer = figure.line({field: "x"}, {field: "y"}, {
      source: source({x: numbers(x), y: numbers(y)}), line_color: own ? colour(v) : style("--ink"), line_dash: [2, 3], line_width: 1.6,
    });
    layers.push({renderer, of});
  }
  for (const v of data.variants.keys()) {
    const marks = curves.marks.filter(mark => mark[0] === v);
    if (!marks.length) continue;
    const all = {x: [], y: [], seed: [], name: []};
    for (const [, seed, x, y] of marks)
      for (const [i, at] of numbers(x).entries()) {
        all.x.push(at), all.y.push(numbers(y)[i]), all.seed.push(seed || "–"), all.name.push(data.variants[v]);
      }
    const renderer = figure.scatter({field: "x"}, {field: "y"}, {
      source: source(all), marker: "x", size: 6, line_color: style("--ink"), line_width: 1.3, line_alpha: 0.8,
    });
    figure.add_tools(new Bokeh.HoverTool({
      renderers: [renderer], visible: false,
      tooltips: [["beyond its target", "@name"], ["seed", "@seed"], [chart.unit, "@y{0.[00000]}"], [chart.x, "@x{0,0}"]],
    }));
    layers.push({renderer, v});
  }
}

function addCurves(plot) {
  const {chart: key, env} = plot.holder.dataset, chart = data.charts[key], curves = data.curves[key][Number(env)];
  const figure = plot.figure = chartOf(chart);
  const add = state.mode === "means" ? addMean : addRuns;
  for (const v of data.variants.keys()) add(figure, chart, curves, v, plot.layers);
  addTargets(figure, chart, curves, plot.layers);
  plot.reading = () => curvesAt(chart, curves);
  return figure;
}

function addAudit(plot) {
  const [audit, chart, place] = plot.holder.dataset.audit.split(" "), spec = data.audits[audit][chart][place];
  const figure = plot.figure = chartOf(spec);
  drawMeans(figure, spec, state.log && spec.log, {colour, dash, ink: style("--ink"), source});
  plot.reading = () => meansAt(spec);
  return figure;
}

function show(plot) {
  for (const {renderer, v, of} of plot.layers)
    renderer.visible = of ? [...of].some(one => state.variants.has(one)) : state.variants.has(v);
  plot.dirty = false;
}

function refresh() {
  for (const holder of document.querySelectorAll("figure[data-env]"))
    holder.hidden = !state.envs.has(Number(holder.dataset.env));
  for (const plot of plots.values()) plot.near ? show(plot) : plot.dirty = true;
  legends();
}

function curvesAt(chart, curves) {
  const means = curves.means.filter(mean => state.variants.has(mean[0]));
  const word = (mean, at) => `${data.variants[mean[0]]}: ${short(numbers(mean[2])[nearest(numbers(mean[1]), at)])}`;
  const said = at => `${chart.x} ${short(at)}; ${means.map(mean => word(mean, at)).join("; ")}`;
  return {x: means.length ? numbers(means[0][1]) : [], said};
}

addEventListener("change", ({target}) => {
  const chosen = (set, i) => target.checked ? set.add(i) : set.delete(i);
  if (target.dataset.variant) {
    chosen(state.variants, Number(target.dataset.variant));
    state.variants = new Set([...state.variants].sort((a, b) => a - b));
  } else if (target.dataset.env) chosen(state.envs, Number(target.dataset.env));
  else if (target.name === "mode") state.mode = target.value;
  else if (target.id === "log") state.log = target.checked;
  target.name === "mode" || target.id === "log" ? redraw() : refresh();
});

document.getElementById("print").addEventListener("click", async () => {
  for (const element of document.querySelectorAll("figure:not([hidden]) .plot")) if (!plots.has(element)) await draw(element);
  print();
});

if (innerWidth < 800) document.getElementById("controls").open = false;
const add = plot => plot.holder.dataset.audit ? addAudit(plot) : addCurves(plot);
startPlots({add, show, legends});
})();
