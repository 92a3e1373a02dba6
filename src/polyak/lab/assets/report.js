"use strict";
// Draws the charts of a report from the JSON in the page. No library, no network.

const report = JSON.parse(document.getElementById("report").textContent);
const COLOURS = 8, DASHES = ["", "7 4", "2 3"];
const rank = new Map(report.methods.map((name, i) => [name, i]));
const colour = (name) => `var(--c${rank.get(name) % COLOURS})`;
const dash = (name) => DASHES[Math.floor(rank.get(name) / COLOURS) % DASHES.length];
const W = 540, H = 300, PAD = { left: 54, right: 14, top: 12, bottom: 38 };

function node(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const format = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return String(Number(value.toPrecision(3)).toExponential()).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
};

// A scale maps [low, high] to pixels and knows its ticks.
function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v;
  const a = f(low), span = f(high) - a || 1;
  const map = (v) => from + ((f(v) - a) / span) * (to - from);
  return { map, ticks: log ? logTicks(low, high) : linearTicks(low, high), invert: (px) => {
    const v = a + ((px - from) / (to - from)) * span;
    return log ? 10 ** v : v;
  } };
}

function linearTicks(low, high) {
  const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), decades = to - from;
  const marks = decades <= 1 ? [1, 1.5, 2, 3, 5, 7] : decades <= 2 ? [1, 2, 5] : [1], every = Math.max(1, Math.ceil(decades / 7)), ticks = [];
  for (let e = from; e <= to; e += every) for (const m of marks) ticks.push(Number((m * 10 ** e).toPrecision(3)));
  return ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
}

function frame(x, y, labels, rows) {
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": labels.title });
  const right = W - PAD.right, bottom = H - PAD.bottom;
  for (const t of x.ticks) {
    svg.append(node("line", { class: "gridline", x1: x.map(t), x2: x.map(t), y1: PAD.top, y2: bottom }));
    svg.append(node("text", { x: x.map(t), y: bottom + 17, "text-anchor": "middle" }, format(t)));
  }
  for (const t of rows ? [] : y.ticks) {
    svg.append(node("line", { class: "gridline", x1: PAD.left, x2: right, y1: y.map(t), y2: y.map(t) }));
    svg.append(node("text", { x: PAD.left - 8, y: y.map(t) + 4, "text-anchor": "end" }, format(t)));
  }
  svg.append(node("line", { class: "axis", x1: PAD.left, x2: right, y1: bottom, y2: bottom }));
  svg.append(node("text", { x: right, y: bottom + 34, "text-anchor": "end" }, labels.x));
  return svg;
}

const group = (svg, name) => {
  const g = node("g", { class: "series", "data-method": name });
  svg.append(g);
  return g;
};

function clipped(svg) {
  const id = `clip${clipped.count = (clipped.count || 0) + 1}`;
  const box = { x: PAD.left, y: PAD.top - 4, width: W - PAD.left - PAD.right + 4, height: H - PAD.top - PAD.bottom + 4 };
  svg.append(node("clipPath", { id }, node("rect", box)));
  return `url(#${id})`;
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// series: [{method, points: [[x, middle, low, high], ...]}]
function lineChart(figure, series, o) {
  const all = series.flatMap((s) => s.points);
  if (!all.length) return empty(figure);
  const log = o.log && all.every((p) => p[2] > 0);
  const [low, high] = range(series, o, log);
  const x = scale(0, Math.max(...all.map((p) => p[0])), PAD.left, W - PAD.right, false);
  const y = scale(low, high, H - PAD.bottom, PAD.top, log);
  const svg = frame(x, y, o), clip = clipped(svg);
  for (const { method, points } of series) {
    const g = group(svg, method), to = (i) => points.map((p) => [x.map(p[0]), y.map(p[i])]);
    const style = { "clip-path": clip, stroke: colour(method), fill: "none" };
    g.append(node("path", { ...style, d: `${path([...to(3), ...to(2).reverse()])}Z`, fill: colour(method), stroke: "none", opacity: 0.12 }));
    g.append(node("path", { ...style, d: path(to(1)), "stroke-width": 2, "stroke-dasharray": dash(method), "stroke-linejoin": "round" }));
  }
  if (o.target !== null && o.target !== undefined && o.target >= low && o.target <= high) {
    svg.append(node("line", { class: "target", x1: PAD.left, x2: W - PAD.right, y1: y.map(o.target), y2: y.map(o.target) }));
    svg.append(node("text", { x: PAD.left + 5, y: y.map(o.target) - 6, class: "halo" }, `target ${format(o.target)}`));
  }
  place(figure, svg);
  crosshair(figure, svg, series, x, o);
}

// The axis spans the medians; the first fifth of a run is left out where it would flatten all that follows.
function range(series, o, log) {
  const late = series.flatMap((s) => s.points.filter((p, i) => !o.zoom || i >= s.points.length / 5)).map((p) => p[1]);
  late.sort((a, b) => a - b);
  const rest = o.zoom ? Math.floor(late.length * 0.08) : 0; // the worst few may leave the frame
  const low = late[o.higher ? rest : 0], high = late[late.length - 1 - (o.higher ? 0 : rest)];
  const early = Math.max(...series.flatMap((s) => s.points.map((p) => p[1])));
  if (log) return [low / 1.15, Math.min(high * 1.3, early * 1.15)];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
}

function crosshair(figure, svg, series, x, o) {
  const line = node("line", { class: "axis", y1: PAD.top, y2: H - PAD.bottom, visibility: "hidden" });
  svg.append(line);
  hover(figure, svg, (px) => {
    const at = x.invert(px), rows = [];
    for (const { method, points } of series) {
      const near = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      if (near) rows.push([method, near]);
    }
    rows.sort((a, b) => (o.higher ? b[1][1] - a[1][1] : a[1][1] - b[1][1]));
    const place = x.map(rows[0][1][0]);
    line.setAttribute("x1", place);
    line.setAttribute("x2", place);
    line.setAttribute("visibility", "visible");
    return [`${format(rows[0][1][0])} ${o.x}`, rows.map(([method, p]) => [method, format(p[1])])];
  }, () => line.setAttribute("visibility", "hidden"));
}

// One row a method: a dot a seed, a bar for the interval, a stroke for the median.
function dotChart(figure, methods, o) {
  const shown = methods.filter((m) => m.metrics.some((v) => v !== null));
  if (!shown.length) return empty(figure);
  const values = shown.flatMap((m) => m.metrics.filter((v) => v !== null));
  const log = o.log && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);
  const room = (Math.max(...values) - Math.min(...values)) * 0.06 || 0.01;
  const ends = log ? [Math.min(...values) / 1.5, Math.max(...values) * 1.5] : [Math.min(...values) - room, Math.max(...values) + room];
  const x = scale(...ends, PAD.left + 30, W - PAD.right, log);
  const height = (H - PAD.top - PAD.bottom) / shown.length;
  const svg = frame(x, null, o, true);
  shown.forEach((m, i) => {
    const middle = PAD.top + height * (i + 0.5), g = group(svg, m.method), fill = colour(m.method);
    g.append(node("text", { class: "name", x: PAD.left + 14, y: middle + 4, "text-anchor": "end" }, m.method));
    const [low, high] = [m.low, m.high].map((v) => (v === null ? null : x.map(v)));
    if (low !== null && high !== null) {
      const bar = { x: low, width: Math.max(1, high - low), y: middle - 7, height: 14, rx: 7, fill, opacity: 0.16 };
      g.append(node("rect", bar));
    }
    m.metrics.filter((v) => v !== null).forEach((v, j) => {
      g.append(node("circle", { cx: x.map(v), cy: middle + ((j % 3) - 1) * 3.2, r: 3.6, fill, opacity: 0.75 }));
    });
    if (m.median !== null) g.append(node("line", { x1: x.map(m.median), x2: x.map(m.median), y1: middle - 11, y2: middle + 11, stroke: fill, "stroke-width": 2.5 }));
  });
  place(figure, svg);
}

// One dot a trial: learning rate against what it came to.
function tuningChart(figure, methods, o) {
  const dots = methods.flatMap((m) => m.trials.map((t, i) => ({ method: m.method, x: t.setting.lr, y: t.metric, t, i })));
  const good = dots.filter((d) => d.x > 0 && d.y !== null);
  if (!good.length) return empty(figure);
  const ys = good.map((d) => d.y), log = o.log && Math.min(...ys) > 0 && Math.max(...ys) > 20 * Math.min(...ys);
  const room = (Math.max(...ys) - Math.min(...ys)) * 0.05 || 0.01;
  const ends = log ? [Math.min(...ys) / 1.5, Math.max(...ys) * 1.5] : [Math.min(...ys) - room, Math.max(...ys) + room];
  const rates = dots.filter((d) => d.x > 0).map((d) => d.x);
  const x = scale(Math.min(...rates) / 1.3, Math.max(...rates) * 1.3, PAD.left, W - PAD.right, true);
  const y = scale(...ends, H - PAD.bottom, PAD.top, log);
  const svg = frame(x, y, o), worst = o.higher ? H - PAD.bottom - 6 : PAD.top + 6;
  const groups = new Map(methods.map((m) => [m.method, group(svg, m.method)]));
  for (const d of dots.filter((d) => d.x > 0)) {
    const cx = x.map(d.x), fill = colour(d.method);
    const title = node("title", {}, `${d.method}, trial ${d.i}: ${Object.entries(d.t.setting).map(([k, v]) => `${k}=${v}`).join(", ")}: ${d.t.metric === null ? d.t.status : format(d.y)}`);
    const mark = d.y === null
      ? node("path", { d: `M${cx - 4} ${worst - 4}l8 8m0-8l-8 8`, stroke: fill, "stroke-width": 1.8, fill: "none" }, title)
      : d.i === 0 // the defaults
        ? node("rect", { x: cx - 4.2, y: y.map(d.y) - 4.2, width: 8.4, height: 8.4, fill, opacity: 0.85 }, title)
        : node("circle", { cx, cy: y.map(d.y), r: 4.4, fill, opacity: 0.8 }, title);
    groups.get(d.method).append(mark);
  }
  place(figure, svg);
}

function profileChart(figure) {
  const corners = Object.entries(report.profiles);
  const most = Math.max(2, ...corners.flatMap(([, points]) => points.map((p) => p[0]))) * 1.15;
  const x = scale(1, most, PAD.left, W - PAD.right, true), y = scale(0, 1.02, H - PAD.bottom, PAD.top, false);
  const svg = frame(x, y, { x: "steps to target, as a multiple of the best method's", title: "performance profile" });
  for (const [method, points] of corners) {
    const steps = [];
    points.forEach(([r, share], i) => { if (i) steps.push([x.map(r), y.map(points[i - 1][1])]); steps.push([x.map(r), y.map(share)]); });
    steps.push([x.map(most), y.map(points[points.length - 1][1])]);
    const stroke = { d: path(steps), stroke: colour(method), fill: "none", "stroke-width": 2.2, "stroke-dasharray": dash(method) };
    group(svg, method).append(node("path", stroke));
  }
  place(figure, svg);
}

function empty(figure) { place(figure, node("svg", { viewBox: `0 0 ${W} 40` }, node("text", { x: 0, y: 20 }, "nothing to show"))); }

function place(figure, svg) {
  figure.querySelector("svg")?.remove();
  figure.append(svg);
}
