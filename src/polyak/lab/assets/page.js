"use strict";
// What a reader can do with the page: hover, pick methods, switch axes and themes.

function hover(figure, svg, describe, leave) {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.querySelector(".tip")?.remove();
  figure.append(tip);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * W;
    if (px < PAD.left || px > W - PAD.right) return;
    const [title, rows] = describe(px);
    const table = document.createElement("table");
    for (const [method, text] of rows) {
      const row = table.insertRow(), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = colour(method);
      row.insertCell().append(swatch, method);
      row.insertCell().textContent = text;
    }
    const head = document.createElement("b");
    head.textContent = title;
    tip.replaceChildren(head, table);
    tip.hidden = false;
    const x = event.clientX - figure.getBoundingClientRect().left, wide = tip.offsetWidth;
    tip.style.left = `${x + 18 + wide > figure.clientWidth ? x - wide - 14 : x + 18}px`;
    tip.style.top = `${event.clientY - figure.getBoundingClientRect().top - 10}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; leave(); });
}

function button(text, pressed, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-pressed", pressed);
  made.addEventListener("click", () => {
    const now = made.getAttribute("aria-pressed") !== "true";
    made.setAttribute("aria-pressed", now);
    act(now);
  });
  return made;
}

function problemSection(section, problem) {
  const figure = (name) => section.querySelector(`[data-chart="${name}"]`);
  const hidden = new Set(), state = { log: true, seconds: false };
  const shown = () => problem.methods.filter((m) => !hidden.has(m.method));
  const curves = (name) => shown().map((m) => {
    const unit = state.seconds ? (m.timing.step_ms || 0) / 1000 : 1;
    return { method: m.method, points: m[name].map(([step, ...rest]) => [step * unit, ...rest]) };
  }).filter((s) => s.points.length);
  const higher = problem.higher_is_better;
  const draw = () => {
    const x = state.seconds ? "seconds" : "steps";
    lineChart(figure("train"), curves("train_curve"), { x, log: state.log, title: "training loss" });
    lineChart(figure("validation"), curves("validation_curve"),
      { x, log: state.log && !higher, zoom: true, target: problem.target, higher, title: `validation ${problem.metric}` });
    dotChart(figure("finals"), shown(), { x: `test ${problem.metric}`, log: !higher, title: "final metrics" });
    tuningChart(figure("tuning"), shown(), { x: "learning rate", log: !higher, higher, title: "tuning" });
  };
  for (const name of ["train", "validation"]) {
    const caption = figure(name).querySelector("figcaption");
    caption.append(button("seconds", false, (on) => { state.seconds = on; sync(section, "seconds", on); draw(); }));
    if (name === "train" || !higher) caption.append(button("log", true, (on) => { state.log = on; sync(section, "log", on); draw(); }));
  }
  legend(section, problem.methods.map((m) => m.method).sort((a, b) => rank.get(a) - rank.get(b)), hidden, draw);
  draw();
}

function sync(section, text, on) {
  for (const b of section.querySelectorAll("figcaption button")) if (b.textContent === text) b.setAttribute("aria-pressed", on);
}

function legend(section, methods, hidden, draw) {
  const place = section.querySelector(".legend");
  for (const method of methods) {
    const chip = button("", true, (on) => { on ? hidden.delete(method) : hidden.add(method); draw(); });
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour(method);
    chip.append(swatch, method);
    const dim = (on) => section.querySelectorAll(".series").forEach((g) => g.classList.toggle("dim", on && g.dataset.method !== method));
    chip.addEventListener("pointerenter", () => dim(true));
    chip.addEventListener("pointerleave", () => dim(false));
    place.append(chip);
  }
}

const root = document.documentElement;
root.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
document.getElementById("theme").addEventListener("click", () => root.classList.toggle("dark"));
document.querySelectorAll("section[data-problem]").forEach((s) => problemSection(s, report.problems[Number(s.dataset.problem)]));
document.querySelectorAll("[data-chart='profile']").forEach(profileChart);
