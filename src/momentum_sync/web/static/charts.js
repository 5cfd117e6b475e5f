// Charts as SVG: a gauge, a line of days, and bars of days. Each is an image with a text, beside a table of its numbers.

import { badge, element, words } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 640;
const HEIGHT = 200;
const LEFT = 46;
const BOTTOM = 30;
const TOP = 12;
const BORDERS = [40, 66]; // scores between NeedsCare, Steady and Rising
const ORDER = ["Rising", "Steady", "NeedsCare"];

function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const image = (label, box, ...children) => draw("svg", { role: "img", "aria-label": label, viewBox: box }, ...children);

/** A point on the gauge's arc: 0 to 100, from left to right. */
function onArc(score, radius) {
  const angle = Math.PI * (1 - score / 100);
  return `${(100 + radius * Math.cos(angle)).toFixed(2)} ${(100 - radius * Math.sin(angle)).toFixed(2)}`;
}

/** A score from 0 to 100 on a half circle. */
export function gauge(score, state) {
  const arc = (from, to) => `M ${onArc(from, 80)} A 80 80 0 0 1 ${onArc(to, 80)}`;
  const parts = [draw("path", { class: "gauge-rest", d: arc(0, 100) })];
  if (score !== null) {
    parts.push(
      draw("path", { class: "gauge-part", "data-momentum": state, d: arc(0, Math.max(score, 0.01)) }),
      draw("text", { class: "gauge-score", x: 100, y: 92, "text-anchor": "middle" }, score.toFixed(1)),
    );
  }
  for (const border of BORDERS) {
    parts.push(draw("path", { class: "gauge-border", d: `M ${onArc(border, 70)} L ${onArc(border, 90)}` }));
  }
  const label = score === null ? "No score yet" : `Momentum ${score.toFixed(1)} of 100: ${words(state)}`;
  return image(label, "8 8 184 104", ...parts);
}

const day = (date) => new Date(`${date}T00:00:00`).toLocaleDateString([], { day: "numeric", month: "short" });
const across = (index, count) => LEFT + ((WIDTH - LEFT - 12) * (index + 0.5)) / count;
const up = (part) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - part);

/** Dates below a chart: the first, the last, and some between. */
function dates(days) {
  const every = Math.max(1, Math.ceil(days.length / 5));
  const last = days.length - 1;
  return days.flatMap(({ score_date: date }, index) => {
    if (index !== last && (index % every !== 0 || last - index < every / 2)) return [];
    const place = index === last ? { x: WIDTH, "text-anchor": "end" } : { x: across(index, days.length), "text-anchor": "middle" };
    return [draw("text", { class: "axis", y: HEIGHT - 8, ...place }, day(date))];
  });
}

function level(part, text) {
  const y = up(part);
  return [
    draw("line", { class: "grid", x1: LEFT, y1: y, x2: WIDTH, y2: y }),
    draw("text", { class: "axis", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text),
  ];
}

/** Scores day by day. `days` are as `/sync/history` has them, oldest first. */
export function trend(days) {
  if (days.length === 0) return element("p", { class: "soft" }, "No scores in these days.");
  const points = days.map((one, index) => [across(index, days.length), up(one.final_score / 100), one]);
  const svg = image(
    `Scores of ${days.length} days, from ${days[0].final_score} on ${day(days[0].score_date)} to ${days.at(-1).final_score} on ${day(days.at(-1).score_date)}`,
    `0 0 ${WIDTH} ${HEIGHT}`,
    ...[0, ...BORDERS, 100].flatMap((score) => level(score / 100, score)),
    draw("polyline", { class: "trend", points: points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") }),
    ...points.map(([x, y, one]) =>
      draw(
        "circle",
        { class: "point", "data-momentum": one.momentum_state, cx: x.toFixed(1), cy: y.toFixed(1), r: 4 },
        draw("title", {}, `${day(one.score_date)}: ${one.final_score}, ${words(one.momentum_state)}`),
      ),
    ),
    ...dates(days),
  );
  const rows = days.toReversed().map((one) => [day(one.score_date), one.final_score, words(one.momentum_state)]);
  return withTable(svg, ["Day", "Score", "State"], rows);
}

/** How many were in which state, day by day. `days` are as `/sync/overview` has them, oldest first. */
export function distribution(days) {
  if (days.length === 0) return element("p", { class: "soft" }, "No scores in these days.");
  const most = Math.max(...days.map((one) => ORDER.reduce((sum, state) => sum + one[state], 0)));
  const width = ((WIDTH - LEFT - 12) / days.length) * 0.8;
  const bars = days.flatMap((one, index) => {
    let below = 0;
    return ORDER.toReversed().map((state) => {
      const from = up(below / most);
      below += one[state];
      const to = up(below / most);
      return draw(
        "rect",
        { class: "bar", "data-momentum": state, x: across(index, days.length) - width / 2, y: to, width, height: from - to },
        draw("title", {}, `${day(one.score_date)}: ${one[state]} ${words(state)}`),
      );
    });
  });
  const last = days.at(-1);
  const svg = image(
    `People by state over ${days.length} days; on ${day(last.score_date)} ${ORDER.map((state) => `${last[state]} ${words(state)}`).join(", ")}`,
    `0 0 ${WIDTH} ${HEIGHT}`,
    ...level(0, 0),
    ...level(1, most),
    ...bars,
    ...dates(days),
  );
  const rows = days.toReversed().map((one) => [day(one.score_date), ...ORDER.map((state) => one[state])]);
  return withTable(svg, ["Day", ...ORDER.map(words)], rows);
}

function withTable(svg, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((text) => element("td", {}, String(text)))),
  );
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  const scroll = element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Data table", "data-key": `numbers of ${heads.length}` },
    table,
  );
  const summary = element("summary", { "data-key": `table of ${heads.length}` }, "Show as a table");
  return element("figure", {}, svg, element("figcaption", {}, ...ORDER.map(badge)), element("details", {}, summary, scroll));
}
