"use strict";
// Small drawings: a histogram on a logarithmic axis, intervals beside zero.

raysae.histogram = (first, counts, most) => {
  const width = 420, height = 150, left = 46, bottom = 34, top = 8;
  const bar = (width - left - 8) / counts.length, tallest = Math.max(...counts);
  const y = (count) => top + (height - top - bottom) * (1 - count / tallest);
  const edge = (number) => 2 ** ((first + number) / 2);
  const made = raysae.svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label":
    `Histogram of ${counts.reduce((a, b) => a + b, 0).toLocaleString("en")} activations, from ${raysae.number(edge(0))} to ${raysae.number(most)}` });
  for (const share of [0, 0.5, 1]) {
    const at = y(tallest * share);
    made.append(raysae.svg("line", { x1: left, x2: width - 8, y1: at, y2: at, class: "rule" }),
      raysae.svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, raysae.number(Math.round(tallest * share))));
  }
  counts.forEach((count, number) => {
    const name = `${raysae.number(edge(number))} to ${raysae.number(edge(number + 1))}: ${count.toLocaleString("en")} rows`;
    made.append(raysae.svg("rect", { x: left + number * bar + 0.5, y: y(count), width: Math.max(bar - 1, 1),
      height: Math.max(height - bottom - y(count), count ? 1 : 0), class: "bar" }, raysae.svg("title", {}, name)));
  });
  const every = Math.max(1, Math.ceil(counts.length / 7));
  for (let number = 0; number <= counts.length; number += every) {
    const x = left + number * bar, ends = number === 0 ? "start" : "middle";
    made.append(raysae.svg("text", { x, y: height - bottom + 14, "text-anchor": ends }, raysae.number(edge(number), 2)));
  }
  made.append(raysae.svg("text", { x: left + (width - left) / 2, y: height - 4, "text-anchor": "middle", class: "axis" }, "activation (log scale)"),
    raysae.svg("text", { x: 10, y: top + (height - top - bottom) / 2, "text-anchor": "middle", class: "axis",
      transform: `rotate(-90 10 ${top + (height - top - bottom) / 2})` }, "rows"));
  return made;
};

raysae.whisker = (value, low, high, most) => {
  const width = 90, height = 18, x = (one) => width / 2 + (one / (most || 1)) * (width / 2 - 6);
  const made = raysae.svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "whisker", "aria-hidden": "true" });
  made.append(raysae.svg("line", { x1: width / 2, x2: width / 2, y1: 1, y2: height - 1, class: "rule" }));
  if (low !== null) made.append(raysae.svg("line", { x1: x(low), x2: x(high), y1: 9, y2: 9, class: "line" }));
  made.append(raysae.svg("circle", { cx: x(value), cy: 9, r: 4, class: "dot" }));
  return made;
};
