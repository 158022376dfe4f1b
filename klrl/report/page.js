"use strict";
// Draws the charts of a report with BokehJS: each when it comes near the screen, again when the colours change.
(async () => {
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)");
// Okabe and Ito's colours, and lighter ones of the same order on a dark page; dashes tell them apart in grey print.
const COLOURS = {
  light: ["#0072B2", "#D55E00", "#009E73", "#AA4499", "#9A6700", "#2A9DD6", "#555555"],
  dark: ["#56B4E9", "#FF8A4C", "#2EC79B", "#E79BC4", "#F0C24B", "#9AD7FF", "#BBBBBB"],
};
const DASHES = [[], [8, 4], [3, 3], [10, 3, 3, 3], [14, 4], [10, 3, 3, 3, 3, 3], [5, 8]];
const colour = v => COLOURS[dark.matches ? "dark" : "light"][v % 7];
const dash = v => DASHES[(v + Math.floor(v / 7)) % DASHES.length];
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const state = {
  envs: new Set(data.envs.keys()), variants: new Set(data.variants.keys()),
  mode: document.querySelector("[name=mode]:checked")?.value, log: false,
};
const plots = new Map();  // element -> what is drawn there

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

function svg(kind, v) {
  const ink = v === null ? style("--ink") : colour(v), dashes = kind === "target" ? [2, 3] : dash(v ?? 0);
  const line = `<line x1="0" y1="6" x2="26" y2="6" stroke="${ink}" stroke-width="2.5" stroke-dasharray="${dashes}"/>`;
  const cross = `<path d="M9 2l8 8M17 2l-8 8" stroke="${ink}" stroke-width="2"/>`;
  return `<svg width="26" height="12" aria-hidden="true">${kind === "mark" ? cross : line}</svg>`;
}

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

function figureOf(chart) {
  const P = Bokeh.Plotting, log = state.log && chart.log;
  const figure = P.figure({
    height: 280, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save",
    x_axis_label: chart.x, y_axis_label: chart.unit, y_axis_type: log ? "log" : "linear",
    y_range: new Bokeh.DataRange1d({only_visible: true, ...(chart.log && !log ? {start: 0} : {})}),
    background_fill_color: null, border_fill_color: null, outline_line_color: null, toolbar_location: "above", toolbar_inner: true,
  });
  figure.toolbar.logo = null;
  figure.toolbar.autohide = true;
  figure.toolbar.active_drag = touch.matches ? null : figure.toolbar.tools.find(tool => tool.type === "BoxZoomTool");
  for (const axis of [...figure.below, ...figure.left]) {
    axis.axis_line_color = axis.major_tick_line_color = style("--line");
    axis.minor_tick_line_color = null;
    axis.axis_label_text_color = axis.major_label_text_color = style("--soft");
    axis.axis_label_text_font_style = "normal";
    axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px";
  }
  figure.below[0].ticker.desired_num_ticks = 5;
  if (!chart.x.startsWith("KL")) figure.below[0].formatter = new Bokeh.NumeralTickFormatter({format: "0,0"});
  for (const grid of figure.center) grid.grid_line_color = style("--line");
  return figure;
}

const source = columns => new Bokeh.ColumnDataSource({data: columns});

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
  const figure = plot.figure = figureOf(chart);
  const add = state.mode === "means" ? addMean : addRuns;
  for (const v of data.variants.keys()) add(figure, chart, curves, v, plot.layers);
  addTargets(figure, chart, curves, plot.layers);
  plot.reading = () => curvesAt(chart, curves);
  return figure;
}

function addAudit(plot) {
  const [audit, chart, place] = plot.holder.dataset.audit.split(" "), spec = data.audits[audit][chart][place];
  const figure = plot.figure = figureOf(spec);
  drawMeans(figure, spec, state.log && spec.log, {colour, dash, ink: style("--ink"), source});
  plot.reading = () => meansAt(spec);
  return figure;
}

async function draw(element) {
  const holder = element.closest("figure"), plot = {layers: [], holder, dirty: false, near: true, cursor: null};
  plots.set(element, plot);
  const figure = holder.dataset.audit ? addAudit(plot) : addCurves(plot);
  plot.span = new Bokeh.Span({dimension: "height", line_color: style("--ink"), line_width: 1, visible: false});
  figure.add_layout(plot.span);
  show(plot);
  element.replaceChildren();
  plot.view = await Bokeh.Plotting.show(figure, element);
  element.dataset.drawn = "yes";
}

function show(plot) {
  for (const {renderer, v, of} of plot.layers)
    renderer.visible = of ? [...of].some(one => state.variants.has(one)) : state.variants.has(v);
  plot.dirty = false;
}

function redraw() {
  for (const [element, plot] of [...plots]) {
    plot.view?.remove();
    plots.delete(element);
    delete element.dataset.drawn;
    element.replaceChildren();
    watcher.unobserve(element);
    watcher.observe(element);
  }
  legends();
}

function refresh() {
  for (const holder of document.querySelectorAll("figure[data-env]"))
    holder.hidden = !state.envs.has(Number(holder.dataset.env));
  for (const plot of plots.values()) plot.near ? show(plot) : plot.dirty = true;
  legends();
}

const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    const plot = plots.get(target);
    if (plot) {
      plot.near = isIntersecting;
      if (isIntersecting && plot.dirty) show(plot);
    } else if (isIntersecting) draw(target);
  }
}, {rootMargin: "300px"});

// Without a mouse: arrows read the curves, plus and minus zoom, 0 shows everything.
function short(x) { return Number.isFinite(x) ? String(Number(x.toPrecision(4))) : "–"; }

function nearest(x, at) {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (Math.abs(x[i] - at) < Math.abs(x[best] - at)) best = i;
  return best;
}

function curvesAt(chart, curves) {
  const means = curves.means.filter(mean => state.variants.has(mean[0]));
  const word = (mean, at) => `${data.variants[mean[0]]}: ${short(numbers(mean[2])[nearest(numbers(mean[1]), at)])}`;
  const said = at => `${chart.x} ${short(at)}; ${means.map(mean => word(mean, at)).join("; ")}`;
  return {x: means.length ? numbers(means[0][1]) : [], said};
}

function read(plot, step) {
  const {x, said} = plot.reading();
  if (!x.length) return;
  plot.cursor = plot.cursor === null ? 0 : Math.min(x.length - 1, Math.max(0, plot.cursor + step));
  const at = x[plot.cursor];
  plot.span.location = at;
  plot.span.visible = true;
  plot.holder.querySelector("output").textContent = said(at);
}

function zoom(plot, factor) {
  const range = plot.figure.x_range, middle = plot.cursor === null ? (range.start + range.end) / 2 : plot.span.location;
  range.setv({start: middle - (middle - range.start) * factor, end: middle + (range.end - middle) * factor});
}

addEventListener("keydown", event => {
  const plot = event.target.matches?.(".plot") ? plots.get(event.target) : undefined;
  if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
  const stride = event.shiftKey ? 10 : 1;
  const keys = {
    ArrowRight: () => read(plot, stride), ArrowLeft: () => read(plot, -stride),
    "+": () => zoom(plot, 0.7), "=": () => zoom(plot, 0.7), "-": () => zoom(plot, 1 / 0.7),
    0: () => plot.view.reset(),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});

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
dark.addEventListener("change", redraw);
refresh();
for (const element of document.querySelectorAll(".plot")) watcher.observe(element);
document.documentElement.dataset.ready = "yes";
})();
