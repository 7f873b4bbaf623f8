// SPDX-License-Identifier: Apache-2.0
// Draws the report's charts at the width they have, so that their text stays readable on a phone.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const DASHES = { solid: "none", dashed: "6 4", dotted: "1.5 3" };
const hidden = new Set();

function make(parent, tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}

// Round steps for about `count` ticks.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const result = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) result.push(v);
  return result;
}

const plain = (v) => (Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(+v.toFixed(2)));

// Means and extremes over seeds; a run that ended early counts as far as it went.
function curves(key, x) {
  return data.arms.map((arm, index) => {
    const runs = arm.runs.filter((run) => run[key].length);
    const length = Math.max(0, ...runs.map((run) => run[key].length));
    const points = [];
    for (let i = 0; i < length; i++) {
      const there = runs.filter((run) => run[key].length > i);
      const ys = there.map((run) => run[key][i]);
      const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
      points.push({ x: mean(there.map((run) => run[x][i])), y: mean(ys),
        low: Math.min(...ys), high: Math.max(...ys) });
    }
    return { index, name: arm.name, label: arm.label, line: arm.line, points };
  });
}

function between(points, x) {
  if (!points.length || x < points[0].x || x > points[points.length - 1].x) return null;
  const after = points.findIndex((p) => p.x >= x);
  const b = points[after], a = points[Math.max(0, after - 1)];
  return a === b || b.x === a.x ? b.y : a.y + ((b.y - a.y) * (x - a.x)) / (b.x - a.x);
}

function stepped(points) {  // a value holds for its whole epoch
  return points.flatMap((p) => [{ ...p, x: p.x - 1 }, p]);
}

function chart(holder, series, options) {
  holder.replaceChildren();
  const shown = series.filter((s) => s.points.length && !hidden.has(s.name));
  const width = holder.clientWidth, height = Math.min(360, Math.max(250, width * 0.62));
  const named = options.names && width >= 460;
  const room = { left: 46, right: named ? 158 : 14, top: 10, bottom: 36 };
  const svg = make(holder, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": options.label });
  if (!shown.length) return;
  const all = shown.flatMap((s) => s.points);
  const xs = [options.x0 ?? Math.min(...all.map((p) => p.x)), Math.max(...all.map((p) => p.x))];
  const inside = all.filter((p) => p.x >= xs[0]);
  const ys = options.range ?? [Math.min(...inside.map((p) => p.low)), Math.max(...inside.map((p) => p.high))];
  const scale = options.log ? Math.log : (v) => v;
  const pad = options.range ? 0 : (scale(ys[1]) - scale(ys[0]) || 1) * 0.04;
  const [bottom, top] = [scale(ys[0]) - pad, scale(ys[1]) + pad];
  const right = width - room.right, base = height - room.bottom;
  const X = (v) => room.left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (right - room.left);
  const Y = (v) => base - ((scale(v) - bottom) / (top - bottom || 1)) * (base - room.top);
  for (const v of ticks(ys[0], ys[1], 5)) {
    make(svg, "line", { x1: room.left, x2: right, y1: Y(v), y2: Y(v), class: "grid" });
    make(svg, "text", { x: room.left - 8, y: Y(v) + 4, "text-anchor": "end" },
      options.percent ? `${Math.round(v * 100)} %` : plain(v));
  }
  for (const v of ticks(xs[0], xs[1], width < 420 ? 4 : 7)) {
    make(svg, "text", { x: X(v), y: base + 17, "text-anchor": "middle" }, plain(v));
  }
  make(svg, "line", { x1: room.left, x2: right, y1: base, y2: base, class: "axis" });
  make(svg, "text", { x: (room.left + right) / 2, y: height - 3, "text-anchor": "middle" }, options.xLabel);
  const clip = `clip-${holder.id}`;
  const area = make(make(svg, "clipPath", { id: clip }), "rect", { x: room.left, y: room.top - 4,
    width: Math.max(0, right - room.left), height: base - room.top + 8 });
  area.setAttribute("rx", 0);
  const inner = make(svg, "g", { "clip-path": `url(#${clip})` });
  for (const s of shown) {
    const color = `var(--c${s.index % 10})`, points = options.step ? stepped(s.points) : s.points;
    if (!options.step && data.seeds.length > 1) {
      const up = points.map((p) => `${X(p.x)},${Y(p.high)}`), down = points.map((p) => `${X(p.x)},${Y(p.low)}`);
      make(inner, "polygon", { points: [...up, ...down.reverse()].join(" "), class: "band", fill: color });
    }
    make(inner, "polyline", { points: points.map((p) => `${X(p.x)},${Y(p.y)}`).join(" "), class: "curve",
      stroke: color, "stroke-dasharray": DASHES[s.line],
      "stroke-width": s.name === data.reference ? 3 : 2 });
  }
  for (const s of shown) {
    const p = s.points[s.points.length - 1];
    if (!options.step) make(svg, "circle", { cx: X(p.x), cy: Y(p.y), r: 3, fill: `var(--c${s.index % 10})` });
  }
  if (named) names(svg, shown, X, Y, right, room.top, base);
  hover(holder, svg, shown, { X, Y, xs, left: room.left, right, top: room.top, base, width }, options);
}

// The curves' names beside their ends, moved apart; on a phone the buttons above have to do.
function names(svg, shown, X, Y, right, top, base) {
  const ends = shown.map((s) => ({ s, p: s.points[s.points.length - 1] }))
    .map(({ s, p }) => ({ s, x: X(p.x), end: Y(p.y), y: Y(p.y) })).sort((a, b) => a.y - b.y);
  ends.forEach((e, i) => { e.y = Math.max(e.y, top, i ? ends[i - 1].y + 15 : 0); });
  for (let i = ends.length - 1, limit = base; i >= 0; i--, limit = ends[i + 1].y - 15) {
    ends[i].y = Math.min(ends[i].y, limit);
  }
  for (const { s, x, end, y } of ends) {
    const color = `var(--c${s.index % 10})`;
    make(svg, "path", { d: `M${x + 4} ${end}L${right + 9} ${y}`, stroke: color, fill: "none", opacity: 0.5 });
    make(svg, "text", { x: right + 12, y: y + 4, class: "name" }, s.label).style.fill = color;
  }
}

function hover(holder, svg, shown, at, options) {
  const guide = make(svg, "line", { y1: at.top, y2: at.base, class: "guide", visibility: "hidden" });
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  holder.appendChild(tip);
  const leave = () => { tip.hidden = true; guide.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    let x = at.xs[0] + ((event.clientX - box.left - at.left) / (at.right - at.left)) * (at.xs[1] - at.xs[0]);
    if (x < at.xs[0] || x > at.xs[1]) return leave();
    if (options.whole) x = options.step ? Math.max(1, Math.ceil(x)) : Math.round(x);
    const found = shown.map((s) => ({ s, y: between(s.points, x) })).filter((f) => f.y !== null);
    found.sort((a, b) => b.y - a.y);
    tip.replaceChildren();
    const head = document.createElement("div");
    head.className = "soft";
    head.textContent = `${options.whole ? "epoch " : ""}${Math.round(x)}${options.whole ? "" : " s"}`;
    tip.appendChild(head);
    for (const { s, y } of found) {
      const line = document.createElement("div"), mark = document.createElement("span");
      mark.className = `swatch ${s.line}`;
      mark.style.setProperty("--c", `var(--c${s.index % 10})`);
      const value = document.createElement("b");
      value.textContent = options.percent ? `${Math.round(y * 100)} %` : y >= 100 ? plain(y) : y.toFixed(3);
      line.append(value, mark, s.label);
      tip.appendChild(line);
    }
    tip.hidden = false;
    guide.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) guide.setAttribute(end, at.X(x));
    const left = at.X(x) > at.width / 2 ? at.X(x) - tip.offsetWidth - 12 : at.X(x) + 12;
    tip.style.left = `${Math.max(0, Math.min(left, at.width - tip.offsetWidth))}px`;
  });
}

function bits(hex, count) {
  return Array.from({ length: count }, (_, i) => (parseInt(hex.substr((i >> 3) * 2, 2), 16) >> (i & 7)) & 1);
}

// Rows are out blocks; columns in blocks, one group a tap.
function mask(holder, layer, hex) {
  const [rows, taps, columns] = layer.blocks, gap = taps > 1 ? 0.7 : 0;
  const width = taps * columns + (taps - 1) * gap, on = bits(hex, rows * taps * columns);
  const svg = make(holder, "svg", { viewBox: `-0.3 -0.3 ${width + 0.6} ${rows + 0.6}`, role: "img",
    "aria-label": `${on.filter(Boolean).length} of ${on.length} blocks` });
  const cell = Math.max(2.5, Math.min(11, 300 / width, 190 / rows));
  svg.style.width = `${(width + 0.6) * cell}px`;
  let path = "";
  on.forEach((active, i) => {
    const row = Math.floor(i / (taps * columns)), tap = Math.floor(i / columns) % taps;
    if (active) path += `M${+(tap * (columns + gap) + (i % columns) + 0.07).toFixed(2)} ${row + 0.07}h.86v.86h-.86z`;
  });
  make(svg, "path", { d: path, fill: "var(--mask)" });
}

function draw() {
  const late = document.getElementById("late").getAttribute("aria-pressed") === "true";
  const loss = curves("loss", "epoch"), timed = curves("loss", "seconds");
  const third = (all) => { const points = all.find((s) => s.name === data.reference)?.points ?? []; return points[Math.floor(points.length / 3)]; };
  const half = third(loss), halfTime = third(timed);
  chart(document.getElementById("by-epoch"), loss, { xLabel: "epoch", log: true, whole: true, names: true,
    x0: late && half ? half.x : undefined, label: "validation loss by epoch" });
  chart(document.getElementById("by-seconds"), timed, { xLabel: "seconds of training", log: true,
    x0: late && halfTime ? halfTime.x : 0, label: "validation loss by seconds of training" });
  chart(document.getElementById("sparsity"), curves("sparsity", "epoch"), { xLabel: "epoch", x0: 0, step: true,
    whole: true, percent: true, range: [0, 1], label: "sparsity by epoch" });
  chart(document.getElementById("speed"), curves("frames_per_second", "epoch"), { xLabel: "epoch", x0: 0,
    step: true, whole: true, label: "frames per second by epoch" });
}

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    if (button.dataset.arm) for (const other of document.querySelectorAll(`[data-arm="${button.dataset.arm}"]`)) {
      other.setAttribute("aria-pressed", on);
    }
    if (button.dataset.arm) hidden[on ? "delete" : "add"](button.dataset.arm);
    draw();
  });
}
for (const holder of document.querySelectorAll("[data-mask]")) {
  const [arm, layer, stage] = JSON.parse(holder.dataset.mask);
  const found = data.arms[arm].layers[layer];
  mask(holder, found, found.masks[stage]);
}
let last = 0;
new ResizeObserver(() => {
  const width = document.querySelector("main").clientWidth;
  if (width !== last) { last = width; draw(); }
}).observe(document.querySelector("main"));
