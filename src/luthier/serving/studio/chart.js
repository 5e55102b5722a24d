// Curves over steps, as SVG: every series has a colour, and a mark for each point where there are few.
const NS = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [260, 46, 12, 10, 24];
const FEW = 40;

function draw(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high, count) { // round numbers between two
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

export function chart(series, width, steps) {
  const WIDTH = Math.max(width, 240);
  const points = series.flatMap((each) => each.points).filter(([, y]) => Number.isFinite(y));
  const right = Math.max(steps ?? 0, ...points.map(([x]) => x), 1);
  const values = points.map(([, y]) => y);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (!(high - low > 1e-9 * Math.max(1, Math.abs(high)))) [low, high] = [(low || 0) - 0.5, (high || 0) + 0.5];
  const x = (at) => LEFT + (WIDTH - LEFT - RIGHT) * (at / right);
  const y = (at) => TOP + (HEIGHT - TOP - BOTTOM) * ((high - at) / (high - low));
  const made = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${series.map((s) => s.label).join(", ")} over ${right} steps` });
  for (const at of ticks(low, high, 6)) {
    made.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at) }));
    made.append(draw("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, String(at)));
  }
  for (const at of ticks(0, right, Math.max(3, WIDTH / 110))) made.append(draw("text", { x: x(at), y: HEIGHT - 6, "text-anchor": "middle" }, String(at)));
  series.forEach((each, i) => {
    const own = each.points.filter(([, value]) => Number.isFinite(value));
    made.append(draw("polyline", { class: `s${i % 5}`, points: own.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }));
    if (own.length <= FEW) for (const [a, b] of own) made.append(draw("circle", { class: `s${i % 5}`, cx: x(a), cy: y(b), r: 3 }));
  });
  return made;
}

export function legend(series) {
  const made = Object.assign(document.createElement("p"), { className: "legend" });
  series.forEach((each, i) => {
    const item = document.createElement("span");
    item.append(Object.assign(document.createElement("span"), { className: `k s${i % 5}` }), each.label);
    made.append(item);
  });
  return made;
}
