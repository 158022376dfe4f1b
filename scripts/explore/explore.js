"use strict";
// Draws the page's charts from plain descriptions, and moves them when a control is moved.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const inkOf = series => series.colour === null ? style("--ink") : colour(series.colour);
const demos = [...document.querySelectorAll("[data-demo]")].map(holder => ({
  holder, spec: data.demos[Number(holder.dataset.demo)], sliders: [...holder.querySelectorAll("input")], drawn: [],
}));

// What the controls say, and what follows from it.
function follow(demo) {
  const values = Object.fromEntries(demo.sliders.map(slider => [slider.dataset.key, Number(slider.value)]));
  const [first] = demo.sliders, place = first ? Number(first.value) : 0;
  demo.found = demo.spec.live ? LIVE[demo.spec.live](values, demo.spec.given) : {columns: {}, words: demo.spec.says[place] ?? ""};
  demo.place = place;
  demo.holder.querySelector(".said").textContent = demo.found.words;
  for (const [i, slider] of demo.sliders.entries()) {
    const said = demo.spec.sliders[i].values[Number(slider.value)] ?? slider.value;
    slider.closest("label").querySelector("b").textContent = said;
    slider.setAttribute("aria-valuetext", said);
  }
  for (const {series, columns} of demo.drawn) columns.data = columnsOf(demo, series);
}

function columnsOf(demo, series) {
  const moved = series.live ? demo.found.columns[series.live] : series.frames[demo.place] ?? {};
  const known = {...series.columns, ...moved};
  return Object.fromEntries(Object.entries(known).map(([key, x]) => [key, x.map(one => one === null ? NaN : one)]));
}

const field = name => ({field: name});
const GLYPHS = {
  line: (figure, look, more) => figure.line(field("x"), field("y"), {...look, line_width: more.width ?? 2}),
  points: (figure, look, more) => figure.scatter(field("x"), field("y"), {
    ...look, marker: more.marker ?? "circle", size: more.size ?? 8, fill_alpha: more.alpha ?? 1, line_alpha: more.alpha ?? 1, line_width: more.width ?? 1,
  }),
  bars: (figure, look, more) => figure.vbar(field("x"), more.width ?? 0.8, field("high"), field("low"), {
    ...look, fill_alpha: more.alpha ?? 0.75, line_color: null, hatch_pattern: more.hatch ?? "blank", hatch_color: style("--ink"), hatch_alpha: 0.3, hatch_scale: 7,
  }),
  area: (figure, look, more) => figure.varea(field("x"), field("low"), field("high"), {
    source: look.source, fill_color: look.fill_color, fill_alpha: more.alpha ?? 0.25,
  }),
  joined: (figure, look, more) => figure.segment(field("x"), field("low"), field("x"), field("high"), {
    ...look, line_width: more.width ?? 2,
  }),
  contours: (figure, look, more) => figure.multi_line(field("xs"), field("ys"), {...look, line_width: more.width ?? 1.2}),
  words: (figure, look, more) => figure.text(field("x"), field("y"), field("words"), {
    source: look.source, text_color: look.line_color, text_font_size: "12px", text_align: more.align ?? "center",
    text_baseline: more.baseline ?? "middle", x_offset: more.right ?? 0, y_offset: more.down ?? 0,
  }),
};

function addSeries(figure, chart, demo, series) {
  const ink = inkOf(series), more = series.more ?? {}, columns = source(columnsOf(demo, series));
  const stroke = series.kind === "line" ? {line_dash: DASHES[series.dash]} : {line_dash: {value: DASHES[series.dash]}};
  const look = {source: columns, line_color: ink};
  if (["line", "joined", "contours"].includes(series.kind)) Object.assign(look, stroke); else look.fill_color = ink;
  const renderer = GLYPHS[series.kind](figure, look, more);
  demo.drawn.push({series, columns});
  if (!series.name || !["line", "points", "bars"].includes(series.kind)) return;
  const along = series.kind === "line", y = series.kind === "bars" ? "@high" : along ? "$snap_y" : "@y", x = along ? "$snap_x" : "@x";
  const places = chart.ticks.length ? [] : [[chart.x || "x", `${x}{0.[0000]}`]];
  figure.add_tools(new Bokeh.HoverTool({
    renderers: [renderer], visible: false, ...(along ? {line_policy: "nearest"} : {}),
    tooltips: [["", series.name], [chart.unit || "value", `${y}{0.[00000]}`], ...places],
  }));
}

function add(plot) {
  const demo = demos.find(one => one.holder.contains(plot.holder)), chart = demo.spec.charts[Number(plot.holder.dataset.chart)];
  const between = ends => new Bokeh.Range1d({start: ends[0], end: ends[1]});
  const figure = plot.figure = figureOf(chart, {
    log: chart.log, height: chart.height, counts: !chart.log_x && chart.x_range?.[1] > 1000, x_axis_type: chart.log_x ? "log" : "linear",
    ...(chart.x_range ? {x_range: between(chart.x_range)} : {}), ...(chart.y_range ? {y_range: between(chart.y_range)} : {}),
  });
  const label = (axis, places, names) => {
    axis.ticker = new Bokeh.FixedTicker({ticks: places});
    axis.major_label_overrides = new Map(places.map((at, i) => [at, names[i]]));
  };
  if (chart.ticks.length) label(figure.below[0], chart.ticks.map((_, i) => i), chart.ticks);
  for (const [axis, places] of [[figure.below[0], chart.x_at], [figure.left[0], chart.y_at]])
    if (places.length) label(axis, places, places.map(at => at.toLocaleString("en")));
  demo.drawn = demo.drawn.filter(one => !chart.series.includes(one.series));
  for (const series of chart.series) addSeries(figure, chart, demo, series);
  plot.reading = () => reading(demo, chart);
  return figure;
}

// What the keyboard reads: the values of all curves, points and bars near a place.
function reading(demo, chart) {
  const named = chart.series.filter(one => one.name && ["line", "points", "bars"].includes(one.kind));
  const all = named.map(one => ({name: one.name, ...columnsOf(demo, one)}));
  const longest = all.reduce((a, b) => b.x.length > a.length ? b.x : a, []);
  const value = (one, i) => one.y ? one.y[i] : one.high[i] - one.low[i];
  const said = at => {
    const near = all.map(one => `${one.name}: ${short(value(one, nearest(one.x, at)))}`);
    return `${chart.x || "at"} ${chart.ticks[at] ?? short(at)}; ${near.join("; ")}`;
  };
  return {x: [...new Set(longest)].sort((a, b) => a - b), said};
}

function legends() {
  const kinds = {points: "point", area: "area", bars: "area"};
  for (const {holder, spec} of demos)
    for (const figure of holder.querySelectorAll("figure")) {
      const named = spec.charts[Number(figure.dataset.chart)].series.filter(one => one.name);
      figure.querySelector(".legend").replaceChildren(...named.map(one => {
        const item = document.createElement("li");
        item.innerHTML = swatchOf(one.more?.marker === "x" ? "mark" : kinds[one.kind] ?? "line", inkOf(one), DASHES[one.dash]);
        item.append(one.name);
        return item;
      }));
    }
}

for (const demo of demos) {
  follow(demo);
  for (const slider of demo.sliders) slider.addEventListener("input", () => follow(demo));
  for (const button of demo.holder.querySelectorAll("[data-button]"))
    button.addEventListener("click", () => {
      const {sets} = demo.spec.buttons[Number(button.dataset.button)];
      for (const slider of demo.sliders) if (slider.dataset.key in sets) slider.value = sets[slider.dataset.key];
      follow(demo);
    });
}
startPlots({add, show: () => {}, legends});
})();
