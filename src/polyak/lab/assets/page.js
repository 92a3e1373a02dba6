"use strict";
// What a script adds to a page that is complete without it: values under the pointer, zoom, one method standing out,
// saving a picture, the other colour scheme, and following a comparison that still runs.

const create = (tag, text = "", attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const format = (value) => {
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
};

function button(text, act) {
  const made = create("button", text, { type: "button" });
  made.addEventListener("click", act);
  return made;
}

// A scale as the picture declares it: "low high log".
function scale(words) {
  const [low, high, kind] = words.split(" "), f = kind === "log" ? Math.log : (v) => v, g = kind === "log" ? Math.exp : (v) => v;
  const a = f(Number(low)), b = f(Number(high));
  return { at: (v) => (f(v) - a) / (b - a || 1), value: (share) => g(a + share * (b - a)) };
}

class Zoom {
  constructor(figure, svg) {
    Object.assign(this, { figure, svg, view: svg.querySelector(".window"), x: scale(svg.dataset.x), y: scale(svg.dataset.y) });
    const { width, height } = this.view.viewBox.baseVal;
    Object.assign(this, { width, height, left: this.view.x.baseVal.value, top: this.view.y.baseVal.value });
    this.original = new Map([...svg.querySelectorAll(".tick-x, .tick-y")].map((tick) => [tick, tick.textContent]));
    svg.tabIndex = 0;
    this.reset = button("whole", () => this.show(0, 1, 0, 1));
    figure.querySelector("figcaption").append(button("zoom in", () => this.by(0.6)), this.reset);
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("dblclick", () => this.show(0, 1, 0, 1));
    svg.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") this.from = this.point(event); });
    svg.addEventListener("pointerup", (event) => this.select(event));
    this.show(0, 1, 0, 1);
  }

  // Shares of the frame, from its left and its bottom, of what is shown now.
  point(event) {
    const box = this.svg.getBoundingClientRect(), unit = this.svg.viewBox.baseVal.width / box.width;
    return [((event.clientX - box.left) * unit - this.left) / this.width, 1 - ((event.clientY - box.top) * unit - this.top) / this.height];
  }

  select(event) {
    const from = this.from, to = this.point(event);
    this.from = null;
    if (!from || Math.abs(from[0] - to[0]) < 0.05) return;
    const [a, b] = [from[0], to[0]].sort((p, q) => p - q).map((v) => Math.min(1, Math.max(0, v)));
    const [c, d] = Math.abs(from[1] - to[1]) < 0.05 ? [0, 1] : [from[1], to[1]].sort((p, q) => p - q).map((v) => Math.min(1, Math.max(0, v)));
    const w = this.x1 - this.x0, h = this.y1 - this.y0;
    this.show(this.x0 + a * w, this.x0 + b * w, this.y0 + c * h, this.y0 + d * h);
  }

  by(factor) { // the end of a run and its best values are what one looks at
    const w = (this.x1 - this.x0) * factor, h = (this.y1 - this.y0) * factor, up = this.higher;
    this.show(this.x1 - w, this.x1, up ? this.y1 - h : this.y0, up ? this.y1 : this.y0 + h);
  }

  key(event) {
    const w = (this.x1 - this.x0) / 5, h = (this.y1 - this.y0) / 5;
    const moves = { ArrowLeft: [-w, 0], ArrowRight: [w, 0], ArrowUp: [0, h], ArrowDown: [0, -h] };
    if (event.key === "+") this.by(0.6);
    else if (event.key === "0" || event.key === "Escape") this.show(0, 1, 0, 1);
    else if (event.key in moves && !this.reset.hidden) {
      const [dx, dy] = moves[event.key];
      this.show(this.x0 + dx, this.x1 + dx, this.y0 + dy, this.y1 + dy);
    } else return;
    event.preventDefault();
  }

  show(x0, x1, y0, y1) {
    Object.assign(this, { x0, x1, y0, y1 });
    const whole = x0 === 0 && x1 === 1 && y0 === 0 && y1 === 1;
    this.reset.hidden = whole;
    this.view.setAttribute("viewBox", [x0 * this.width, (1 - y1) * this.height, (x1 - x0) * this.width, (y1 - y0) * this.height].join(" "));
    this.svg.querySelector(".labels").style.visibility = whole ? "" : "hidden"; // they stand at the ends of whole lines
    for (const [tick, text] of this.original) {
      const vertical = tick.classList.contains("tick-y");
      const share = vertical ? 1 - (Number(tick.getAttribute("y")) - 4 - this.top) / this.height : (Number(tick.getAttribute("x")) - this.left) / this.width;
      tick.textContent = whole ? text : format(vertical ? this.y.value(y0 + share * (y1 - y0)) : this.x.value(x0 + share * (x1 - x0)));
    }
  }
}

// The values of all methods at the place under the pointer.
function tips(figure, svg, zoom, methods, key) {
  const tip = create("div", "", { class: "tip" });
  tip.hidden = true;
  figure.append(tip);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  svg.addEventListener("pointermove", (event) => {
    const share = zoom.point(event)[0];
    tip.hidden = share < 0 || share > 1;
    if (tip.hidden) return;
    const at = zoom.x.value(zoom.x0 + share * (zoom.x1 - zoom.x0)), near = (rows) => rows.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    const rows = methods.filter((m) => m[key].length).map((m) => [m.method, near(m[key])]);
    rows.sort((a, b) => (zoom.higher ? b[1][1] - a[1][1] : a[1][1] - b[1][1]));
    tip.replaceChildren(create("b", `${format(rows[0][1][0])} ${svg.dataset.label}`), ...rows.map(([method, row]) => {
      const line = create("div");
      line.append(create("span", method), create("span", format(row[1])));
      return line;
    }));
    const box = figure.getBoundingClientRect(), x = event.clientX - box.left;
    tip.style.left = `${Math.max(0, x + 18 + tip.offsetWidth > box.width ? x - tip.offsetWidth - 14 : x + 18)}px`;
    tip.style.top = `${event.clientY - box.top - 10}px`;
  });
}

function save(figure, svg) {
  const css = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).map((rule) => rule.cssText).filter((text) => text.startsWith("svg ") || text.startsWith(":root"));
  const copy = svg.cloneNode(true), style = document.createElementNS("http://www.w3.org/2000/svg", "style");
  style.textContent = css.join("\n").replace("light dark", "light");
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.prepend(style);
  const link = create("a", "", { download: `${figure.dataset.chart}.svg`, href: URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" })) });
  link.click();
  URL.revokeObjectURL(link.href);
}

function legend(section) {
  let alone = null;
  const stand = (name) => section.querySelectorAll(".series").forEach((g) => g.classList.toggle("dim", name !== null && g.dataset.method !== name));
  for (const entry of section.querySelectorAll(".legend > [data-method]")) {
    const chip = create("button", "", { type: "button", "aria-pressed": "false", title: "let this method stand out" }), name = entry.dataset.method;
    chip.append(...entry.childNodes);
    chip.addEventListener("click", () => {
      alone = alone === name ? null : name;
      section.querySelectorAll(".legend button").forEach((other) => other.setAttribute("aria-pressed", String(other === chip && alone !== null)));
      stand(alone);
    });
    chip.addEventListener("pointerenter", () => stand(name));
    chip.addEventListener("pointerleave", () => stand(alone));
    entry.replaceWith(chip);
  }
}

const KEYS = { validation: "validation_curve", train: "train_curve", expected: "expected" };

function start() {
  const report = JSON.parse(document.getElementById("report").textContent);
  const theme = button("light or dark", () => {
    const root = document.documentElement, dark = root.classList.contains("dark") || (!root.classList.contains("light") && matchMedia("(prefers-color-scheme: dark)").matches);
    root.className = dark ? "light" : "dark";
  });
  document.querySelector("header").append(theme);
  for (const figure of document.querySelectorAll("figure")) {
    const svg = figure.querySelector("svg"), section = figure.closest("section[data-problem]");
    if (figure.dataset.chart !== "tuning") figure.querySelector("figcaption").append(button("save", () => save(figure, svg)));
    if (!svg.classList.contains("zoom")) continue;
    const zoom = new Zoom(figure, svg), key = KEYS[figure.dataset.chart];
    if (!section || !key) continue;
    const problem = report[Number(section.dataset.problem)];
    zoom.higher = key !== "train_curve" && problem.higher_is_better;
    tips(figure, svg, zoom, problem.methods, key);
  }
  document.querySelectorAll("section[data-problem]").forEach(legend);
}

// While the comparison runs, the page asks its server for itself and takes over what is new.
async function follow(seconds) {
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  try {
    const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
    if (page.getElementById("report").textContent !== document.getElementById("report").textContent) {
      for (const part of ["main", "#report"]) document.querySelector(part).replaceWith(page.querySelector(part));
      start();
    } else {
      const [old, fresh] = [document, page].map((one) => one.getElementById("progress"));
      if (old && fresh) old.replaceWith(fresh);
      else old?.remove();
    }
    if (!page.body.dataset.refresh) return;
  } catch { // the page stays as it is
    document.getElementById("progress")?.replaceChildren(create("li", "The comparison does not answer: it has ended or was stopped. This is what was known last."));
  }
  follow(seconds);
}

start();
if (document.body.dataset.refresh) follow(Number(document.body.dataset.refresh));
