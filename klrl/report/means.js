"use strict";
// Draws means with their standard errors, as an audit has them: bars beside each other, or lines over steps.
function drawMeans(figure, spec, log, {colour, dash, ink, source}) {
  const bars = spec.kind === "bars";
  const above = spec.series.flatMap(s => [...s.y, ...s.low, ...s.marks.flat()]).filter(y => y > 0);
  const floor = log ? Math.min(...above) / 1.5 : 0;  // a logarithmic axis has no place for 0, where bars begin
  const placed = y => log && y <= 0 ? NaN : y;
  const axis = figure.below[0];
  if (spec.ticks.length) {
    axis.ticker = new Bokeh.FixedTicker({ticks: spec.ticks.map((_, i) => i + 1)});
    axis.major_label_overrides = new Map(spec.ticks.map((name, i) => [i + 1, name]));
  } else axis.ticker.min_interval = 1;
  for (const [v, s] of spec.series.entries()) {
    const x = s.at.map(at => bars ? at + 0.4 * (v - 0.5) : at), top = s.y.map(placed);
    const place = s.at.map(at => spec.ticks[at - 1] ?? at.toLocaleString("en"));
    const columns = source({x, top, place, words: s.words, name: s.at.map(() => s.name)});
    if (!bars) figure.line({field: "x"}, {field: "top"}, {source: columns, line_color: colour(v), line_dash: dash(v), line_width: 1.8});
    const renderer = bars
      ? figure.vbar({field: "x"}, 0.36, {field: "top"}, floor, {
        source: columns, fill_color: colour(v), line_color: colour(v), fill_alpha: 0.75,
        hatch_pattern: v ? "right_diagonal_line" : "blank", hatch_color: ink, hatch_alpha: 0.35, hatch_scale: 8,
      })
      : figure.scatter({field: "x"}, {field: "top"}, {source: columns, marker: "circle", size: 7, color: colour(v)});
    figure.add_tools(new Bokeh.HoverTool({
      renderers: [renderer], visible: false, tooltips: [["KL", "@name"], [spec.x, "@place"], [spec.unit, "@words"]],
    }));
    addErrors(figure, s, x, floor, bars ? ink : colour(v), source);
    for (const [i, y] of s.marks.entries())
      figure.scatter({field: "x"}, {field: "y"}, {
        source: source({x, y: y.map(placed)}), marker: ["dash", "circle", "triangle"][i], size: i ? 7 : 22,
        line_color: ink, line_width: 1.5, fill_color: null,
      });
  }
}

function addErrors(figure, s, x, floor, ink, source) {
  const known = [...x.keys()].filter(i => s.low[i] !== null && s.high[i] > floor);
  const ends = {x: known.map(i => x[i]), low: known.map(i => Math.max(s.low[i], floor)), high: known.map(i => s.high[i])};
  const look = {source: source(ends), line_color: ink, line_width: 1.6};
  figure.segment({field: "x"}, {field: "low"}, {field: "x"}, {field: "high"}, look);
  for (const end of ["low", "high"]) figure.scatter({field: "x"}, {field: end}, {...look, marker: "dash", size: 9});
}

// What the keyboard reads: the places, and the words of every mean at one of them.
function meansAt(spec) {
  const x = [...new Set(spec.series.flatMap(s => s.at))].sort((a, b) => a - b);
  const said = at => {
    const words = spec.series.filter(s => s.at.includes(at)).map(s => `${s.name}: ${s.words[s.at.indexOf(at)]}`);
    return `${spec.x} ${spec.ticks[at - 1] ?? at}; ${words.join("; ")}`;
  };
  return {x, said};
}
