"use strict";
// What all pages share: data as it arrives, elements, numbers, and the state in the address.

const raysae = { run: null, tables: new Map(), chunks: new Map(), take: {} };

raysae.take.sites = (run) => { raysae.run = run; };
raysae.take.table = (table) => { raysae.tables.set(table.site, table); };
raysae.take.chunk = (chunk) => { raysae.chunks.set(chunk.chunk, chunk); };

// A script is the one thing that a page opened from disk may read.
raysae.load = (url) => new Promise((done, failed) => {
  const script = document.createElement("script");
  script.src = url;
  script.onload = () => { script.remove(); done(); };
  script.onerror = () => { script.remove(); failed(new Error(`${url} is missing; make the pages again`)); };
  document.head.append(script);
});

// An element; text is always text, so nothing in the data can become markup.
raysae.el = (name, attributes = {}, ...children) => {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
};

raysae.svg = (tag, attributes = {}, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.flat());
  return made;
};

raysae.number = (value, digits = 3) => {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "−");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replaceAll("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
};

raysae.percent = (value) => {
  if (value === null || value === undefined) return "";
  const hundred = value * 100;
  return `${hundred !== 0 && hundred < 0.01 ? hundred.toExponential(1).replaceAll("-", "−") : Number(hundred.toPrecision(3))}%`;
};

raysae.interval = (low, high, form = raysae.number) =>
  low === null || low === undefined ? "no interval" : `95% CI ${form(low)} to ${form(high)}`;

// A token as it stands in a text: ends of lines are marks, spaces stay.
raysae.token = (text, attributes = {}) =>
  raysae.el("bdi.token", attributes, raysae.visible(text));

raysae.visible = (text) => text.trim() ? text.replaceAll("\n", "↵") : text.replaceAll("\n", "↵").replaceAll(" ", "␣") || "∅";

// The same inside a running text, where a space is a space.
raysae.piece = (text, attributes = {}) => raysae.el("bdi.token", attributes, text.replaceAll("\n", "↵"));

raysae.state = () => new URLSearchParams(location.hash.slice(1));

// The address follows what is chosen; with `step` the back button leads to what was before.
raysae.go = (changes, step = false) => {
  const state = raysae.state();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "" || value === false) state.delete(key);
    else state.set(key, value);
  }
  const hash = `#${state}`;
  if (hash === (location.hash || "#")) return;
  if (step) location.hash = hash;
  else location.replace(hash);
};

raysae.siteOf = (layer, position, hookpoint) => raysae.run.sites.find(
  (one) => one.layer === layer && one.position === position && one.hookpoint === hookpoint,
);

raysae.label = (table, number) => {
  const columns = table.columns;
  if (columns.description[number]) return columns.description[number];
  const few = (tokens, most) => (tokens || []).slice(0, most).map((token) => raysae.visible(token).trim()).join(" · ");
  const tokens = few(columns.tokens[number], 4), promotes = few(columns.promotes[number], 3);
  return promotes ? `${tokens} → ${promotes}` : tokens;
};

// An atlas that was analysed outside a run has no report to go to.
raysae.withoutReport = () => {
  if (!raysae.run.report) document.querySelector("nav a").replaceWith("Atlas");
};

raysae.PHASES = {
  labels: "labels", ablation: "causal effects", tracking: "tracks through the layers", stability: "stability",
};

raysae.notRun = (phase) => {
  const why = raysae.run.missing[phase];
  return why === undefined ? null : `not run${why ? `: ${why}` : ""} (python -m raysae.analyze RUN ${phase})`;
};
