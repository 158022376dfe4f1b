"use strict";
// What every page of klrl does with BokehJS: a chart is drawn when it comes near the screen, again when the colours
// change, and is read, zoomed and reset by the keyboard. A page says what is in its charts: startPlots.
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
const source = columns => new Bokeh.ColumnDataSource({data: columns});
const plots = new Map();  // element -> what is drawn there
let contents;  // add(plot) -> figure, show(plot), legends()

function short(x) { return Number.isFinite(x) ? String(Number(x.toPrecision(4))) : "–"; }

function nearest(x, at) {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (Math.abs(x[i] - at) < Math.abs(x[best] - at)) best = i;
  return best;
}

function swatchOf(kind, ink, dashes) {
  const line = `<line x1="0" y1="6" x2="26" y2="6" stroke="${ink}" stroke-width="2.5" stroke-dasharray="${dashes}"/>`;
  const shapes = {
    mark: `<path d="M9 2l8 8M17 2l-8 8" stroke="${ink}" stroke-width="2"/>`,
    point: `<circle cx="13" cy="6" r="4" fill="${ink}"/>`,
    area: `<rect x="4" y="1" width="18" height="10" fill="${ink}" fill-opacity="0.55"/>`,
  };
  return `<svg width="26" height="12" aria-hidden="true">${shapes[kind] ?? line}</svg>`;
}

// spec: words of the axes x and y; log: a logarithmic y axis; counts: whole numbers along x; more: settings of the figure.
function figureOf(spec, {log = false, counts = false, ...more} = {}) {
  const figure = Bokeh.Plotting.figure({
    height: 280, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save",
    x_axis_label: spec.x, y_axis_label: spec.unit, y_axis_type: log ? "log" : "linear",
    background_fill_color: null, border_fill_color: style("--paper"), outline_line_color: null, toolbar_location: "above", toolbar_inner: true,
    ...more,
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
  if (counts) figure.below[0].formatter = new Bokeh.NumeralTickFormatter({format: "0,0"});
  for (const grid of figure.center) grid.grid_line_color = style("--line");
  return figure;
}

async function draw(element) {
  const holder = element.closest("figure"), plot = {layers: [], holder, dirty: false, near: true, cursor: null};
  plots.set(element, plot);
  const figure = contents.add(plot);
  plot.span = new Bokeh.Span({dimension: "height", line_color: style("--ink"), line_width: 1, visible: false});
  figure.add_layout(plot.span);
  contents.show(plot);
  element.replaceChildren();
  plot.view = await Bokeh.Plotting.show(figure, element);
  element.dataset.drawn = "yes";
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
  contents.legends();
}

const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    const plot = plots.get(target);
    if (plot) {
      plot.near = isIntersecting;
      if (isIntersecting && plot.dirty) contents.show(plot);
    } else if (isIntersecting) draw(target);
  }
}, {rootMargin: "300px"});

// Without a mouse: arrows read the curves, plus and minus zoom, 0 shows everything.
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

function onKey(event) {
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
}

function startPlots(given) {
  contents = given;
  addEventListener("keydown", onKey);
  dark.addEventListener("change", redraw);
  contents.legends();
  for (const element of document.querySelectorAll(".plot")) watcher.observe(element);
  document.documentElement.dataset.ready = "yes";
}
