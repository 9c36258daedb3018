"use strict";
// The page of a site: list and filters on one side, a feature on the other, all of it in the address.

raysae.RANGES = [
  ["density", "density from", "density", (value, given) => value >= given],
  ["below", "density to", "density", (value, given) => value <= given],
  ["effect", "|effect| from", "effect", (value, given) => Math.abs(value) >= given],
  ["stability", "seeds' cosine from", "stability", (value, given) => value >= given],
  ["next", "next layer's cosine from", "next_layer", (value, given) => value >= given],
  ["track", "layers from", "track", (value, given) => value >= given],
  ["coherence", "coherence from", "coherence", (value, given) => value >= given],
];

raysae.CHECKS = [
  ["dead", "dead features, too", null],
  ["shown", "with contexts", (columns, number) => columns.contexts[number]],
  ["effects", "with an effect", (columns, number) => columns.effect[number] !== null],
  ["described", "with a description", (columns, number) => columns.description[number]],
];

raysae.Site = class {
  constructor(table) {
    this.table = table;
    this.pane = document.getElementById("feature");
    this.grid = new raysae.Grid(document.getElementById("table"), table, (number, step = true) => raysae.go({ f: number }, step));
    this.grid.onsort = (sort) => raysae.go({ sort });
    this.contextTexts = new Map();
    this.heading();
    this.controls();
    addEventListener("hashchange", () => this.follow());
    this.follow();
  }

  heading() {
    raysae.withoutReport();
    document.getElementById("name").textContent = raysae.run.name;
    const choice = document.getElementById("sites");
    for (const one of raysae.run.sites) choice.append(raysae.el("option", { value: one.site, selected: one.site === this.table.site }, one.title));
    choice.addEventListener("change", () => {
      const state = raysae.state();
      state.delete("f");
      location.href = `../${choice.value}/index.html#${state}`;
    });
  }

  controls() {
    const place = document.getElementById("ranges"), columns = this.table.columns;
    for (const [key, title, column] of raysae.RANGES) {
      const there = columns[column].some((value) => value !== null);
      place.append(raysae.el("label", { title: there ? null : "not known at this site" }, title,
        raysae.el("input", { type: "text", inputmode: "decimal", name: key, size: 6, disabled: !there, oninput: (event) => this.typed(key, event.target.value) })));
    }
    for (const [key, title, test] of raysae.CHECKS) {
      const there = !test || columns.live.some((_, number) => test(columns, number));
      if (there) place.append(raysae.el("label.check", {}, raysae.el("input", { type: "checkbox", name: key, onchange: (event) => raysae.go({ [key]: event.target.checked ? 1 : null }) }), ` ${title}`));
    }
    document.getElementById("q").addEventListener("input", (event) => this.typed("q", event.target.value));
    document.getElementById("deep").addEventListener("change", (event) => raysae.go({ deep: event.target.checked ? 1 : null }));
  }

  typed(key, value) {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => raysae.go({ [key]: value.trim() ? value : null }), 120);
  }

  // Do what the address says.
  follow() {
    const state = raysae.state();
    this.fill(state);
    const filters = new URLSearchParams(state);
    filters.delete("f");
    if (String(filters) !== this.filters) {
      this.filters = String(filters);
      this.filter(state);
    }
    const given = state.get("f"), number = /^\d{1,9}$/.test(given || "") ? Number(given) : null;
    if (number !== this.number || given === null) this.open(number);
  }

  fill(state) {
    for (const field of document.querySelectorAll("#filters input")) {
      const key = field.name || field.id;
      if (field.type === "checkbox") field.checked = state.has(key);
      else if (field !== document.activeElement) field.value = state.get(key) || "";
    }
    const used = raysae.RANGES.concat(raysae.CHECKS).filter(([key]) => state.has(key)).length;
    document.querySelector("#more summary").textContent = used ? `Filters (${used})` : "Filters";
  }

  async filter(state) {
    const columns = this.table.columns, tests = [];
    if (!state.has("dead")) tests.push((number) => columns.live[number]);
    for (const [key, , test] of raysae.CHECKS) if (test && state.has(key)) tests.push((number) => test(columns, number));
    for (const [key, , column, test] of raysae.RANGES) {
      const given = Number.parseFloat(state.get(key));
      if (!Number.isNaN(given)) tests.push((number) => columns[column][number] !== null && test(columns[column][number], given));
    }
    const wanted = (state.get("q") || "").toLowerCase(), texts = raysae.texts(this.table);
    if (wanted.trim() && state.has("deep")) await this.readContexts();
    if (String(this.filters) !== String(withoutFeature(raysae.state()))) return;
    if (wanted.trim()) tests.push((number) => texts[number].includes(wanted) || String(number) === wanted.trim() ||
      (state.has("deep") && (this.contextTexts.get(number) || "").includes(wanted)));
    const numbers = [];
    for (let number = 0; number < columns.live.length; number++) if (tests.every((test) => test(number))) numbers.push(number);
    this.grid.show(numbers, state.get("sort") || "-density");
    if (this.number !== null && this.number !== undefined) this.grid.reveal(this.number);
    document.getElementById("count").textContent = `${raysae.number(numbers.length)} of ${raysae.number(columns.live.length)} features`;
  }

  async readContexts() {
    const size = this.table.chunk_size, last = Math.ceil(this.table.features / size);
    for (let number = 0; number < last; number++) {
      if (!this.table.columns.contexts.slice(number * size, (number + 1) * size).some(Boolean)) continue;
      document.getElementById("count").textContent = `reading contexts: ${Math.round((100 * number) / last)}%`;
      const chunk = await this.chunk(number);
      for (const one of chunk.features) if (!this.contextTexts.has(one.feature)) {
        this.contextTexts.set(one.feature, one.contexts.map((row) => row[8].map((word) => chunk.words[word]).join("")).join("\n").toLowerCase());
      }
    }
  }

  async chunk(number) {
    if (!raysae.chunks.has(number)) await raysae.load(`features-${String(number).padStart(4, "0")}.js`);
    return raysae.chunks.get(number);
  }

  async open(number) {
    this.number = number;
    document.body.classList.toggle("opened", number !== null);
    this.grid.select(number);
    if (number === null) return this.pane.replaceChildren(this.welcome());
    if (number >= this.table.features) return this.pane.replaceChildren(raysae.none(`There is no feature ${number}: they are 0 to ${this.table.features - 1}.`));
    this.grid.reveal(number);
    let parts;
    try {
      const chunk = await this.chunk(Math.floor(number / this.table.chunk_size));
      if (this.number !== number) return undefined;
      parts = new raysae.Feature(this.table, chunk, number).draw();
    } catch (error) {
      parts = [raysae.el("p.warn", {}, error.message)];
    }
    const back = raysae.el("button.back", { type: "button", onclick: () => raysae.go({ f: null }, true) }, "← List");
    this.pane.replaceChildren(raysae.el("div.bar-top", {}, back, this.steps()), ...parts.filter(Boolean));
    this.pane.scrollTop = 0;
    if (document.body.classList.contains("opened") && matchMedia("(max-width: 820px)").matches) scrollTo(0, 0);
    return undefined;
  }

  steps() {
    const step = (by, title) => raysae.el("button", { type: "button", title: `${title} feature in the list`, onclick: () => {
      const next = this.grid.numbers[this.grid.numbers.indexOf(this.number) + by];
      if (next !== undefined) raysae.go({ f: next }, true);
    } }, title);
    return raysae.el("span.steps", {}, step(-1, "previous"), step(1, "next"));
  }

  welcome() {
    const table = this.table, n = raysae.number;
    const missing = Object.keys(raysae.run.missing).map((phase) => raysae.el("li", {}, `${raysae.PHASES[phase]}: ${raysae.notRun(phase)}`));
    return raysae.el("div.welcome", {}, raysae.el("h2", {}, table.title),
      raysae.el("p", {}, `${n(table.live)} of ${n(table.features)} features are active at ${n(table.rows)} rows; ${n(table.labelled)} have contexts. Choose one from the list: a click, or the arrow keys.`),
      raysae.el("p.soft", {}, raysae.run.source),
      missing.length ? raysae.el("div", {}, raysae.el("h3", {}, "Not known of these features"), raysae.el("ul", {}, missing)) : null);
  }
};

function withoutFeature(state) {
  const rest = new URLSearchParams(state);
  rest.delete("f");
  return rest;
}

new raysae.Site([...raysae.tables.values()][0]);
