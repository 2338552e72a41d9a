// The page of the live view. What stands on it comes whole from the kernel, and only the button sends something back.
// The button and the table stay in place while the rest is drawn anew, so that neither focus nor scrolling is lost.
// Text is never read as HTML.

const SILENT_MS = 15000;
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [320, 140, 44, 8, 6, 18];

function element(tag, name, attributes = {}, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = `lv-${name}`;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(tag, name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  made.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function told(value) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-4)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

// Two or three round numbers within the range.
function ticks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 2));
  const step = [5, 2, 1].map((each) => each * power).find((each) => (high - low) / each >= 2) ?? power;
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) {
    found.push(Math.abs(tick) < step * 1e-9 ? 0 : Number(tick.toPrecision(12)));
  }
  return found;
}

// What is seen of y: the curves without a few far outliers, a target that is not far off, an edge of the healthy band.
function rangeOf(panel) {
  const values = panel.curves.flatMap((curve) => curve.points.map((point) => point[1])).sort((a, b) => a - b);
  const at = (share) => values[Math.round(share * (values.length - 1))];
  const newest = panel.curves.map((curve) => curve.points.at(-1)[1]);
  const most = at(0.95) - at(0.05) || Infinity;
  let low = Math.min(Math.max(values[0], at(0.05) - most), ...newest);
  let high = Math.max(Math.min(values.at(-1), at(0.95) + most), ...newest);
  if (panel.target !== null && panel.target < 5 * high) high = Math.max(high, panel.target);
  if (panel.band && low > panel.band[1]) low = panel.band[1];
  if (panel.band && high < panel.band[0]) high = panel.band[0];
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
  return [low - air, high + air];
}

function plot(panel, step) {
  const [low, high] = rangeOf(panel);
  const across = panel.curves.flatMap((curve) => curve.points.map((point) => point[0]));
  const [first, last] = [Math.min(...across), Math.max(...across)];
  const x = (value) => LEFT + ((value - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const words = panel.curves.map((curve) => `${curve.name} from ${told(curve.points[0][1])} to ${told(curve.points.at(-1)[1])}`);
  const svg = shape("svg", "lv-plot", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    "aria-label": `${panel.title}: ${words.join(", ")}, at ${step} ${told(first)} to ${told(last)}`,
  });
  if (panel.band) {
    const [top, bottom] = [y(Math.min(panel.band[1], high)), y(Math.max(panel.band[0], low))];
    svg.append(shape("rect", "lv-band", { x: LEFT, width: WIDTH - LEFT - RIGHT, y: top, height: Math.max(bottom - top, 0) }));
  }
  for (const tick of ticks(low, high)) {
    svg.append(shape("line", "lv-grid", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(shape("text", "", { x: LEFT - 5, y: y(tick) + 3.5, "text-anchor": "end" }, told(tick)));
  }
  svg.append(shape("text", "", { x: LEFT, y: HEIGHT - 4 }, told(first)));
  svg.append(shape("text", "", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, step));
  svg.append(shape("text", "", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, last.toLocaleString("en")));
  panel.curves.forEach((curve, i) => {
    const points = curve.points.map((point) => [x(point[0]), Math.min(Math.max(y(point[1]), TOP), HEIGHT - BOTTOM)]);
    const line = points.map((point) => point.map((each) => each.toFixed(1)).join(",")).join(" ");
    svg.append(shape("polyline", `lv-curve lv-c${i % 3}`, { points: line }));
    if (points.length > 20) return;
    for (const [cx, cy] of points) svg.append(shape("circle", `lv-dot lv-c${i % 3}`, { cx, cy, r: 2.2 }));
  });
  if (panel.target !== null && panel.target > low && panel.target < high) {
    svg.append(shape("line", "lv-target", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(panel.target), y2: y(panel.target) }));
    svg.append(shape("text", "lv-over", { x: WIDTH - RIGHT, y: Math.max(y(panel.target) - 3, TOP + 9), "text-anchor": "end" }, `target ${told(panel.target)}`));
  }
  return svg;
}

function panelOf(panel, step) {
  const newest = (curve) => element("b", "value", {}, told(curve.points.at(-1)[1]));
  const head = element("div", "head", {}, element("span", "title", {}, panel.title));
  const below = element("div", "below");
  if (panel.curves.length === 1) {
    const band = panel.band ? `healthy ${told(panel.band[0])} to ${told(panel.band[1])}` : "";
    head.append(newest(panel.curves[0]));
    below.append([panel.unit, band].filter(Boolean).join(", "));
  } else {
    panel.curves.forEach((curve, i) => {
      const mark = element("span", `c${i % 3}`, { "aria-hidden": "true" }, ["━", "╍", "┅"][i % 3]);
      below.append(element("span", "legend", {}, mark, ` ${curve.name} `, newest(curve)));
    });
  }
  return element("div", "panel", {}, head, below, plot(panel, step));
}

function alarmOf(alarm) {
  return element(
    "li",
    "alarm",
    {},
    element("div", "words", {}, `${alarm.words} `, element("span", "since", {}, alarm.since)),
    element("div", "advice", {}, alarm.advice),
  );
}

function tableOf(samples) {
  const head = element("tr", "", {}, ...samples.columns.map((name) => element("th", "", { scope: "col" }, name)));
  const rows = samples.rows.map((row) => element("tr", "", {}, ...row.map((text) => element("td", "", { dir: "auto" }, text))));
  return element("table", "", {}, element("thead", "", {}, head), element("tbody", "", {}, ...rows));
}

function render({ model, el }) {
  const name = element("span", "name");
  const state = element("span", "state", { role: "status", "aria-live": "polite" });
  const doing = element("span", "doing");
  const note = element("div", "note", { role: "status", "aria-live": "polite" });
  const figures = element("div", "figures");
  const stop = element("button", "button", { type: "button" });
  const beside = element("span", "beside", { id: `lv-beside-${model.model_id ?? ""}` });
  stop.setAttribute("aria-describedby", beside.id);
  const alarms = element("ul", "alarms", { role: "log", "aria-live": "assertive", "aria-label": "Alarms" });
  const panels = element("div", "panels");
  const table = element("div", "table", { tabindex: "0", role: "region", "aria-label": "Sample replies" });
  const samples = element("details", "samples", { open: "" }, element("summary", "", {}, "Newest samples"), table);
  const fault = element("div", "fault", { role: "alert" });
  const root = element(
    "div",
    "root",
    { "data-lm-suppress-shortcuts": "true", role: "group", "aria-label": "Live view of a run" }, // JupyterLab leaves our keys alone
    element("div", "top", {}, name, state, doing),
    note,
    figures,
    element("div", "act", {}, stop, beside),
    fault,
    alarms,
    panels,
    samples,
  );
  const seen = {}; // what is drawn, to leave alone what has not changed
  let silent = null;

  function changed(key, value) {
    const text = JSON.stringify(value);
    if (seen[key] === text) return false;
    seen[key] = text;
    return true;
  }

  function say(node, text) {
    if (node.textContent !== text) node.textContent = text; // a screen reader reads what is written again
  }

  function draw() {
    const view = model.get("view");
    say(name, view.run);
    say(state, view.state);
    state.dataset.state = view.state;
    say(doing, view.doing);
    say(note, view.note);
    say(stop, view.stop.label);
    say(beside, view.stop.note);
    stop.setAttribute("aria-disabled", String(!view.stop.able));
    if (changed("figures", view.figures)) {
      figures.replaceChildren(...view.figures.map(([label, value]) => element("span", "figure", {}, label, element("b", "", {}, value))));
    }
    if (changed("alarms", view.alarms)) alarms.replaceChildren(...view.alarms.map(alarmOf));
    if (changed("panels", view.panels)) panels.replaceChildren(...view.panels.map((panel) => panelOf(panel, view.step)));
    samples.hidden = !view.samples.rows.length;
    if (changed("samples", view.samples)) table.replaceChildren(tableOf(view.samples));
    listen();
  }

  // The kernel says something every few seconds, until nothing more can come.
  function listen() {
    clearTimeout(silent);
    say(fault, "");
    if (model.get("view").over) return;
    silent = setTimeout(() => {
      say(fault, "This page has not heard from its kernel for a while: another cell is running, or the kernel has ended. The run itself is not concerned. Run this cell again to go on.");
    }, SILENT_MS);
  }

  stop.addEventListener("click", () => {
    if (stop.getAttribute("aria-disabled") === "false") model.send({ action: "stop", run: model.get("view").run });
  });
  for (const kind of ["keydown", "keyup", "keypress", "mousedown"]) root.addEventListener(kind, (event) => event.stopPropagation());
  model.on("change:view", draw);
  model.on("change:beat", listen);
  el.append(root);
  draw();
  return () => {
    clearTimeout(silent);
    model.off("change:view", draw);
    model.off("change:beat", listen);
  };
}

export default { render };
