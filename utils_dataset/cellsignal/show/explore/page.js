"use strict";
// All names come from the run's files: they are set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const wells = data.wells, count = wells.plate.length;
const element = (id) => document.getElementById(id);
const label = data.simulated ? " (simulated data)" : "";

// Okabe and Ito's colours; where there are more categories than colours, the shape tells them apart.
const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"];
const SHAPES = {
  circle: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
  square: "M-.88-.88H.88V.88H-.88Z",
  triangle: "M0-1.05L1.05 .85H-1.05Z",
  diamond: "M0-1.2L1.2 0 0 1.2-1.2 0Z",
  plus: "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
};
const CROSS = "M-.45-.45L.45 .45M.45-.45L-.45 .45";
const OUTCOMES = {
  right: { text: "right", colour: "#0072B2", shape: "circle" },
  wrong: { text: "wrong", colour: "#D55E00", shape: "square", cross: true },
  unknown: { text: "answer, truth unknown", colour: "#56B4E9", shape: "diamond" },
  "no answer": { text: "no answer", colour: "#DDDDDD", shape: "circle" },
  positive_control: { text: "positive control", colour: "#E8C77A", shape: "triangle" },
  negative_control: { text: "untreated", colour: "#333333", shape: "plus" },
};
const TYPES = {
  treatment: { text: "treatment", colour: "#56B4E9" },
  positive_control: { text: "positive control", colour: "#E69F00" },
  negative_control: { text: "untreated", colour: "#222222" },
};
const GROUP_COLOURS = ["#56B4E9", "#F0E442", "#009E73", "#D55E00"];
const RAMP = ["#00204D", "#31446B", "#666970", "#958F78", "#CBBA69", "#FFEA46"]; // cividis
const GREY = "#DDDDDD";
const ANSWERS = {
  all: ["all wells", () => true],
  right: ["right", (i) => outcome(i) === "right"],
  wrong: ["wrong", (i) => outcome(i) === "wrong"],
  unknown: ["truth unknown", (i) => outcome(i) === "unknown"],
  answered: ["all with an answer", (i) => wells.call[i] !== null],
  controls: ["controls", (i) => type(i) !== "treatment"],
};

const outcome = (i) => data.outcomes[wells.outcome[i]];
const type = (i) => data.types[wells.type[i]];
const plate = (i) => data.plates[wells.plate[i]];
const row = (i) => Math.floor(wells.place[i] / 24), column = (i) => wells.place[i] % 24;
const position = (i) => "ABCDEFGHIJKLMNOP"[row(i)] + String(column(i) + 1).padStart(2, "0");
const plateName = (p) => `${data.experiments[data.plates[p].experiment]}, plate ${data.plates[p].number}`;
const wellName = (i) => `${data.experiments[plate(i).experiment]}_${plate(i).number}_${position(i)}`;
const sirnaText = (sirna) => (sirna === null ? "unknown" : sirna === data.untreated ? "untreated" : `siRNA ${sirna}`);
const isHeldOut = (experiment) => data.held_out.includes(experiment);
const confidenceText = (i) => (wells.confidence[i] !== null ? (wells.confidence[i] / 1000).toFixed(3) : isHeldOut(plate(i).experiment) ? "for test wells only" : "not stated");
const cycle = (n) => ({ colour: COLOURS[n % COLOURS.length], shape: Object.keys(SHAPES)[Math.floor(n / COLOURS.length) % 5] });

// What is chosen.
const state = { plate: 0, selected: -1, pointed: -1, map: 0, cellType: -1, experiment: -1, answers: "all", plateColour: "outcome", mapColour: "experiment" };

function ramp(share) {
  const at = Math.min(Math.max(share, 0), 0.999) * (RAMP.length - 1), low = Math.floor(at), part = at - low;
  const channel = (n) => Math.round(parseInt(RAMP[low].slice(n, n + 2), 16) * (1 - part) + parseInt(RAMP[low + 1].slice(n, n + 2), 16) * part);
  return `rgb(${channel(1)} ${channel(3)} ${channel(5)})`;
}

// Each way to colour wells: its name, the style of a well, and the legend.
const outcomeLegend = (rows) => Object.entries(OUTCOMES).filter(([name]) => rows.some((i) => outcome(i) === name)).map(([, style]) => style);
const PLATE_COLOURS = {
  outcome: ["right or wrong", (i) => OUTCOMES[outcome(i)].colour, outcomeLegend],
  confidence: ["confidence", (i) => (wells.confidence[i] === null ? GREY : ramp(wells.confidence[i] / 1000)),
    (rows) => [{ ramp: true }, { text: "not stated", colour: GREY, shape: "circle" }, ...outcomeLegend(rows).map((style) => ({ ...style, colour: "#FFFFFF" }))]],
  group: ["plate group of the siRNA", (i) => (wells.group[i] === null ? GREY : GROUP_COLOURS[wells.group[i] % 4]),
    (rows) => [...new Set(rows.map((i) => wells.group[i]))].filter((group) => group !== null).sort()
      .map((group) => ({ text: `group ${group + 1}`, colour: GROUP_COLOURS[group % 4], shape: "circle" })).concat({ text: "none", colour: GREY, shape: "circle" })],
  type: ["treatment or control", (i) => TYPES[type(i)].colour,
    (rows) => Object.entries(TYPES).filter(([name]) => rows.some((i) => type(i) === name)).map(([, style]) => ({ ...style, shape: "circle" }))],
};
if (!wells.group.some((group) => group !== null)) delete PLATE_COLOURS.group;
const categories = (rows, key, text) => {
  const values = [...new Set(rows.map(key))].filter((value) => value !== null && value >= 0).sort((a, b) => a - b);
  return values.slice(0, 24).map((value) => ({ text: text(value), ...cycle(value) })).concat(values.length > 24 ? { text: `and ${values.length - 24} more`, colour: GREY, shape: "circle" } : []);
};
const ofSirna = (i) => wells.sirna[i] ?? wells.call[i];
const MAP_COLOURS = {
  experiment: ["experiment", (i) => cycle(plate(i).experiment), (rows) => categories(rows, (i) => plate(i).experiment, (n) => data.experiments[n])],
  plate: ["plate", (i) => cycle(plate(i).number - 1), (rows) => categories(rows, (i) => plate(i).number - 1, (n) => `plate ${n + 1}`)],
  sirna: ["siRNA, true or else decided", (i) => (ofSirna(i) === null ? { colour: GREY, shape: "circle" } : cycle(ofSirna(i))),
    () => [{ text: "colours and shapes distinguish siRNAs and are reused; wells with the siRNA of the selected well have a ring", colour: "none", shape: "circle" }]],
  outcome: ["right or wrong", (i) => OUTCOMES[outcome(i)], outcomeLegend],
};

// Which wells are shown.
const inPlaces = (i) => (state.cellType < 0 || plate(i).cell_type === state.cellType) && (state.experiment < 0 || plate(i).experiment === state.experiment);
const isShown = (i) => inPlaces(i) && ANSWERS[state.answers][1](i);
const all = Array.from({ length: count }, (_, i) => i);
const onPlate = () => all.filter((i) => wells.plate[i] === state.plate);
const plates = () => data.plates.map((_, p) => p).filter((p) =>
  (state.cellType < 0 || data.plates[p].cell_type === state.cellType) && (state.experiment < 0 || data.plates[p].experiment === state.experiment));

function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => new Option(text, key)));
  select.value = String(value);
}

function node(name, attributes = {}, text = "") {
  const made = name.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

function legend(target, styles) {
  target.replaceChildren(...styles.map((style) => {
    const item = node("li");
    if (style.ramp) {
      const bar = node("span", { class: "ramp" });
      bar.style.background = `linear-gradient(to right, ${RAMP.join(", ")})`;
      item.append("confidence 0", bar, "1");
      return item;
    }
    const picture = node("svg:svg", { viewBox: "-1.3 -1.3 2.6 2.6", "aria-hidden": "true" });
    if (style.colour !== "none") {
      picture.append(node("svg:path", { d: SHAPES[style.shape], fill: style.colour, stroke: "#333", "stroke-width": 0.12 }));
      if (style.cross) picture.append(node("svg:path", { d: CROSS, stroke: style.colour === "#FFFFFF" ? "#000" : "#fff", "stroke-width": 0.35 }));
      item.append(picture);
    }
    item.append(style.text);
    return item;
  }));
}

// The plate map.
const cells = new Map(); // by well
function describe(i) {
  const called = wells.call[i] === null ? OUTCOMES[outcome(i)].text : `decided ${sirnaText(wells.call[i])}, ${OUTCOMES[outcome(i)].text}, confidence ${confidenceText(i)}`;
  return `${position(i)}: ${wells.sirna[i] === null ? "" : `${sirnaText(wells.sirna[i])}, `}${called}`;
}

function drawPlate() {
  const rows = onPlate(), byPlace = new Map(rows.map((i) => [wells.place[i], i]));
  const svg = node("svg:svg", { class: "plate", viewBox: "-0.3 -0.3 25.5 17.4", role: "grid", "aria-labelledby": "plate-title", "aria-rowcount": 16, "aria-colcount": 24 });
  const head = node("svg:g", { "aria-hidden": "true" });
  for (let c = 0; c < 24; c++) head.append(node("svg:text", { x: c + 1.2, y: 0.25, class: c % 2 ? "even" : "" }, String(c + 1)));
  svg.append(head);
  cells.clear();
  for (let r = 0; r < 16; r++) {
    const line = node("svg:g", { role: "row", "aria-rowindex": r + 1 });
    line.append(node("svg:text", { x: 0.2, y: r + 1.2, "aria-hidden": "true" }, "ABCDEFGHIJKLMNOP"[r]));
    for (let c = 0; c < 24; c++) {
      const i = byPlace.get(r * 24 + c), where = `translate(${c + 1.2} ${r + 1.2})`;
      if (i === undefined) {
        line.append(node("svg:circle", { class: "empty", r: 0.09, transform: where }));
        continue;
      }
      const cell = node("svg:g", { role: "gridcell", tabindex: -1, transform: where, "data-well": i, "aria-colindex": c + 1 });
      cell.append(node("svg:rect", { x: -0.5, y: -0.5, width: 1, height: 1, fill: "transparent" }));
      cell.append(node("svg:rect", { class: "ring", x: -0.52, y: -0.52, width: 1.04, height: 1.04, rx: 0.18 }));
      const style = OUTCOMES[outcome(i)];
      cell.append(node("svg:path", { class: "mark", d: SHAPES[style.shape], transform: "scale(0.37)" }));
      if (style.cross) cell.append(node("svg:path", { class: "cross", d: CROSS, transform: "scale(0.37)" }));
      cells.set(i, cell);
      line.append(cell);
    }
    svg.append(line);
  }
  element("plate-map").replaceChildren(svg);
  element("plate-title").textContent = `Plate map: ${plateName(state.plate)}${label}`;
  paintPlate();
}

function paintPlate() {
  const rows = onPlate(), shown = rows.filter(isShown), colour = PLATE_COLOURS[state.plateColour];
  for (const [i, cell] of cells) {
    cell.setAttribute("class", [isShown(i) ? "" : "filtered", i === state.selected ? "selected" : i === state.pointed ? "shown" : ""].join(" ").trim());
    cell.setAttribute("aria-label", describe(i));
    cell.setAttribute("aria-selected", i === state.selected);
    cell.setAttribute("tabindex", -1);
    cell.querySelector(".mark").setAttribute("fill", colour[1](i));
    const cross = cell.querySelector(".cross"), group = cell.querySelector(".group");
    const isDark = state.plateColour === "outcome" || (state.plateColour === "confidence" && wells.confidence[i] !== null && wells.confidence[i] < 600);
    if (cross) cross.style.stroke = isDark ? "#fff" : "#000";
    if (group) group.remove();
    if (state.plateColour === "group" && wells.group[i] !== null) {
      if (cross) cross.style.stroke = "transparent";
      cell.append(node("svg:text", { class: "group" }, String(wells.group[i] + 1)));
    }
  }
  // One well is in the order of Tab; the arrow keys lead to the others.
  const entry = cells.has(state.selected) ? state.selected : shown.length ? shown[0] : rows[0];
  if (cells.has(entry)) cells.get(entry).setAttribute("tabindex", 0);
  legend(element("plate-legend"), colour[2](rows));
  const right = shown.filter((i) => outcome(i) === "right").length, wrong = shown.filter((i) => outcome(i) === "wrong").length;
  element("plate-count").textContent = `${shown.length} of ${rows.length} wells shown` + (right + wrong ? `: ${right} right, ${wrong} wrong.` : ".");
}

function next(from, key) {
  const candidates = onPlate().filter((i) => isShown(i) && i !== from), vertical = key === "ArrowUp" || key === "ArrowDown";
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  const along = (i) => sign * (vertical ? row(i) - row(from) : column(i) - column(from));
  const across = (i) => Math.abs(vertical ? column(i) - column(from) : row(i) - row(from));
  if (key === "Home" || key === "End") {
    const line = candidates.filter((i) => row(i) === row(from)).concat(from);
    return line.reduce((best, i) => ((key === "End") === column(i) > column(best) ? i : best), from);
  }
  // The same line first; else the nearest well on that side.
  return candidates.filter((i) => along(i) > 0).reduce((best, i) => (best < 0 || along(i) + 30 * across(i) < along(best) + 30 * across(best) ? i : best), -1);
}

// The map of wells.
const canvas = element("map");
const marks = document.createElement("canvas"); // all wells, painted once; only rings are drawn anew while one points
let points = new Float64Array(2 * count), visible = []; // where each well is now, in the units of the map; the wells that the map shows
const hasMaps = data.maps.length > 0;
const placed = (i) => data.maps[state.map].x[i] !== null;
// Networks share no space: the map shows the wells of one.
const network = () => wells.network[all.find((i) => inPlaces(i) && wells.network[i] !== null)] ?? null;
const onMap = () => {
  const chosen = network();
  return all.filter((i) => wells.network[i] === chosen && placed(i) && (state.cellType < 0 || plate(i).cell_type === state.cellType));
};
const toScreen = (i) => {
  const unit = canvas.clientWidth / 2000 / 1.06;
  return [canvas.clientWidth / 2 + unit * points[2 * i], canvas.clientHeight / 2 - unit * points[2 * i + 1]];
};

function settle() {
  for (let i = 0; i < count; i++) {
    points[2 * i] = data.maps[state.map].x[i] ?? 0;
    points[2 * i + 1] = data.maps[state.map].y[i] ?? 0;
  }
}

function paintMap() {
  if (!hasMaps) return;
  const scale = window.devicePixelRatio || 1, rows = onMap(), radius = markSize(rows);
  canvas.width = marks.width = canvas.clientWidth * scale;
  canvas.height = marks.height = canvas.clientHeight * scale;
  const context = marks.getContext("2d"), paths = Object.fromEntries(Object.entries(SHAPES).map(([name, d]) => [name, new Path2D(d)]));
  const mark = (i, colour, shape, size, edge) => {
    const [x, y] = toScreen(i);
    context.setTransform(scale * size, 0, 0, scale * size, scale * x, scale * y);
    context.fillStyle = colour;
    context.fill(paths[shape]);
    if (edge) {
      context.strokeStyle = edge;
      context.lineWidth = 0.7 / size;
      context.stroke(paths[shape]);
    }
  };
  visible = rows.filter(isShown);
  for (const i of rows) if (!isShown(i)) mark(i, "#E6E6E6", "circle", radius * 0.6, "");
  const style = MAP_COLOURS[state.mapColour][1];
  for (const i of visible) {
    const { colour, shape } = style(i);
    mark(i, colour, shape, radius, "#333");
  }
  const map = data.maps[state.map], shares = map.shares[network()];
  element("map-title").textContent = `Map of ${data.networks.length > 1 ? `the ${data.cell_types[state.cellType]} wells` : "all wells"}, ${map.name}${label}`;
  element("map-count").textContent = `${visible.length} of ${rows.length} wells shown. ` +
    (shares ? `Across and up: the first two principal components, ${shares.map((share) => `${Math.round(100 * share)} %`).join(" and ")} of the variance. ` : "") + (map.notes[network()] ?? "");
  legend(element("map-legend"), MAP_COLOURS[state.mapColour][2](visible));
  drawRings();
}

const markSize = (rows) => (rows.length > 4000 ? 2 : rows.length > 800 ? 3 : 4.2);

function drawRings() {
  if (!hasMaps) return;
  const context = canvas.getContext("2d"), scale = canvas.width / canvas.clientWidth, i = state.pointed >= 0 ? state.pointed : state.selected, size = markSize(visible);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(marks, 0, 0);
  const ring = (well, radius, colour, line) => {
    const [x, y] = toScreen(well);
    context.setTransform(scale, 0, 0, scale, scale * x, scale * y);
    context.beginPath();
    context.arc(0, 0, radius, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.stroke();
  };
  if (i < 0) return;
  if (ofSirna(i) !== null && type(i) === "treatment") for (const other of visible) if (ofSirna(other) === ofSirna(i)) ring(other, size + 3, "#000", 1.2);
  if (wells.network[i] === network() && placed(i)) {
    ring(i, size + 5, "#fff", 5);
    ring(i, size + 5, "#000", 2.5);
  }
}

function moveMap(to) {
  const from = points.slice();
  state.map = to;
  settle();
  const target = points.slice(), start = performance.now();
  if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) return paintMap();
  const frame = (now) => {
    const share = Math.min(1, Math.max(0, now - start) / 500), eased = share * share * (3 - 2 * share);
    for (let n = 0; n < points.length; n++) points[n] = from[n] + (target[n] - from[n]) * eased;
    paintMap();
    if (share < 1 && state.map === to) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function nearestOnMap(x, y) {
  let best = -1, least = 14 ** 2;
  for (const i of visible) {
    const [px, py] = toScreen(i), distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

function nextOnMap(key) {
  const rows = visible.filter((i) => i !== state.selected);
  if (!visible.includes(state.selected)) return rows.length ? rows[0] : -1;
  const [x, y] = toScreen(state.selected), vertical = key === "ArrowUp" || key === "ArrowDown", sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let best = -1, least = Infinity;
  for (const i of rows) {
    const [px, py] = toScreen(i), along = sign * (vertical ? py - y : px - x), across = Math.abs(vertical ? px - x : py - y);
    if (along > 0 && across <= along * 1.5 && along + 2 * across < least) [best, least] = [i, along + 2 * across];
  }
  return best;
}

// The well that is pointed at, or else the one that is selected.
function picture(target, i) {
  const sheet = plate(i).sheet, n = wells.image[i];
  target.className = n === null ? "image none" : `image sheet-${sheet}`;
  target.textContent = n === null ? "no image" : "";
  if (n !== null) {
    target.style.setProperty("--column", n % data.columns);
    target.style.setProperty("--row", Math.floor(n / data.columns));
  }
}

function showWell() {
  const i = state.pointed >= 0 ? state.pointed : state.selected;
  if (i < 0) return;
  element("well-title").textContent = `Well ${wellName(i)}${label}`;
  picture(element("image"), i);
  element("image").setAttribute("aria-label", wells.image[i] === null ? "no image of this well" : `composite image of ${wellName(i)}`);
  const facts = type(i) === "treatment" ? [] : [["control", TYPES[type(i)].text]];
  if (type(i) !== "negative_control") facts.push(["true siRNA", wells.sirna[i] ?? "unknown"]);
  if (wells.call[i] !== null) {
    facts.push(["decided", `${wells.call[i]}, ${OUTCOMES[outcome(i)].text}`], ["confidence", confidenceText(i)]);
  }
  if (wells.group[i] !== null) facts.push(["plate group", String(wells.group[i] + 1)]);
  if (wells.set[i]) {
    const [size, first] = wells.set[i];
    facts.push(["90 % set", `${size} siRNA${size === 1 ? "" : "s"}: ${first.join(", ")}${size > first.length ? ", …" : ""}`]);
  }
  element("facts").replaceChildren(...facts.flatMap(([name, text]) => [node("dt", {}, name), node("dd", {}, String(text))]));
  const near = hasMaps ? data.maps[state.map].neighbours[i].filter((other) => other >= 0) : [];
  element("similar").hidden = near.length === 0;
  if (near.length) element("similar-title").textContent = `Most similar wells, ${data.maps[state.map].name}`;
  element("neighbours").replaceChildren(...near.map((other) => {
    const button = node("button", { type: "button", "data-well": other }), item = node("li"), image = node("span");
    picture(image, other);
    const same = ofSirna(i) !== null && ofSirna(i) === ofSirna(other);
    button.append(image, node("span", {}, `${sirnaText(ofSirna(other))}${same ? ", the same" : ""}`), node("span", { class: "quiet" }, wellName(other)));
    item.append(button);
    return item;
  }));
}

function select(i, { focus = false } = {}) {
  if (i < 0) return;
  state.selected = i;
  state.pointed = -1;
  if (wells.plate[i] !== state.plate) {
    if (!inPlaces(i)) {
      state.experiment = -1;
      if (state.cellType >= 0) state.cellType = plate(i).cell_type;
    }
    state.plate = wells.plate[i];
    fillFilters();
    drawPlate();
    paintMap();
  } else paintPlate();
  if (focus && cells.has(i)) cells.get(i).focus({ preventScroll: true });
  drawRings();
  showWell();
  element("status").textContent = `${plateName(wells.plate[i])}, ${describe(i)}`;
}

function point(i) {
  if (i === state.pointed) return;
  state.pointed = i;
  for (const [other, cell] of cells) cell.classList.toggle("shown", other === i && other !== state.selected);
  drawRings();
  showWell();
}

function fillFilters() {
  const separate = data.networks.length > 1; // whose embeddings share no map
  fill(element("cell-type"), [...(separate ? [] : [[-1, "all"]]), ...data.cell_types.map((name, n) => [n, name])], state.cellType);
  const experiments = [...new Set(data.plates.filter((each) => state.cellType < 0 || each.cell_type === state.cellType).map((each) => each.experiment))];
  if (!experiments.includes(state.experiment)) state.experiment = -1;
  fill(element("experiment"), [[-1, "all"], ...experiments.map((n) => [n, data.experiments[n] + (isHeldOut(n) ? " (held out)" : "")])], state.experiment);
  if (!plates().includes(state.plate)) state.plate = plates()[0];
  fill(element("plate"), plates().map((p) => [p, plateName(p)]), state.plate);
}

function refilter() {
  const before = state.plate;
  fillFilters();
  if (before !== state.plate || !cells.has(state.selected)) drawPlate();
  paintMap();
  const rows = onPlate(), kept = rows.includes(state.selected) && isShown(state.selected) ? state.selected : rows.find((i) => isShown(i) && wells.call[i] !== null) ?? rows.find(isShown) ?? rows[0];
  select(kept);
  element("status").textContent = `${element("plate-count").textContent} ${hasMaps ? `On the map ${element("map-count").textContent}` : ""}`;
}

function listen() {
  const on = (id, key, redraw) => element(id).addEventListener("change", (event) => {
    state[key] = /^-?\d+$/.test(event.target.value) ? Number(event.target.value) : event.target.value;
    redraw();
  });
  on("cell-type", "cellType", refilter);
  on("experiment", "experiment", refilter);
  on("answers", "answers", refilter);
  on("plate", "plate", () => {
    drawPlate();
    refilter();
  });
  on("plate-colour", "plateColour", paintPlate);
  on("map-colour", "mapColour", paintMap);
  const map = element("plate-map"), wellAt = (event) => Number(event.target.closest("[data-well]")?.dataset.well ?? -1);
  map.addEventListener("pointerover", (event) => point(wellAt(event)));
  map.addEventListener("pointerleave", () => point(-1));
  map.addEventListener("click", (event) => select(wellAt(event), { focus: true }));
  map.addEventListener("keydown", (event) => {
    if (!/^(Arrow(Up|Down|Left|Right)|Home|End|Enter| )$/.test(event.key)) return;
    event.preventDefault();
    const from = wellAt(event);
    select(event.key === "Enter" || event.key === " " ? from : next(from, event.key), { focus: true });
  });
  map.addEventListener("focusin", (event) => wellAt(event) !== state.selected && select(wellAt(event)));
  element("neighbours").addEventListener("click", (event) => {
    select(wellAt(event));
    element("neighbours").querySelector("button")?.focus();
  });
  element("correction").addEventListener("change", (event) => {
    moveMap(Number(event.target.value));
    showWell();
  });
  canvas.addEventListener("pointermove", (event) => {
    const i = nearestOnMap(event.offsetX, event.offsetY), tip = element("tip");
    point(i);
    tip.hidden = i < 0;
    canvas.style.cursor = i < 0 ? "" : "pointer";
    if (i < 0) return;
    const [x, y] = toScreen(i);
    tip.textContent = `${wellName(i)}: ${sirnaText(ofSirna(i))}`;
    tip.style.left = `${Math.min(Math.max(canvas.offsetLeft + x, 90), canvas.offsetLeft + canvas.clientWidth - 80)}px`;
    tip.style.top = `${Math.max(canvas.offsetTop + y, 34)}px`;
  });
  canvas.addEventListener("pointerleave", () => {
    element("tip").hidden = true;
    point(-1);
  });
  canvas.addEventListener("click", (event) => select(nearestOnMap(event.offsetX, event.offsetY)));
  canvas.addEventListener("keydown", (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    select(nextOnMap(event.key));
  });
  window.addEventListener("resize", paintMap);
}

function begin() {
  element("explore").hidden = false;
  if (data.networks.length > 1) state.cellType = data.plates[0].cell_type;
  fill(element("answers"), Object.entries(ANSWERS).filter(([, [, has]]) => all.some(has)).map(([key, [text]]) => [key, text]), "all");
  fill(element("plate-colour"), Object.entries(PLATE_COLOURS).map(([key, [text]]) => [key, text]), state.plateColour);
  fill(element("map-colour"), Object.entries(MAP_COLOURS).map(([key, [text]]) => [key, text]), state.mapColour);
  element("map-section").hidden = !hasMaps;
  fill(element("correction"), data.maps.map((map, n) => [n, map.name]), 0);
  if (hasMaps) settle();
  listen();
  fillFilters();
  drawPlate();
  refilter();
  element("status").textContent = "";
}

begin();
