"use strict";
// The list of features: any number of them, of which only the rows in sight are in the page.

raysae.COLUMNS = [
  { key: "feature", title: "#", about: "the feature's number", width: "4.2em" },
  { key: "density", title: "density", about: "share of rows at which it is active", width: "5.2em", form: raysae.percent },
  { key: "max_activation", title: "max", about: "largest activation", width: "4.4em", from: 360 },
  { key: "effect", title: "effect", about: "causal effect of the ablation", width: "5.4em", from: 420, size: true },
  { key: "stability", title: "seeds", about: "cosine with another seed's feature", width: "4.2em", from: 500, spare: true },
  { key: "next_layer", title: "next", about: "cosine with its match in the next layer", width: "4.2em", from: 500, spare: true },
  { key: "track", title: "layers", about: "layers through which it is followed", width: "4.2em", from: 540, spare: true },
  { key: "coherence", title: "coherence", about: "how alike its strongest contexts are", width: "5.4em", from: 700 },
  { key: "label", title: "label", about: "description, or commonest tokens → promoted tokens", width: "minmax(8em, 1fr)" },
];

raysae.value = (table, key, number) => {
  if (key === "feature") return number;
  if (key === "label") return raysae.label(table, number);
  const column = table.columns[key];
  return column ? column[number] : null;
};

// Numbers by size or by value, texts by alphabet; what has no value comes last.
raysae.sorted = (table, numbers, sort) => {
  const down = sort.startsWith("-"), key = sort.replace(/^-/, "");
  const column = raysae.COLUMNS.find((one) => one.key === key) || raysae.COLUMNS[0];
  const values = new Map(numbers.map((number) => {
    const value = raysae.value(table, column.key, number);
    return [number, column.size && value !== null ? Math.abs(value) : value];
  }));
  return numbers.slice().sort((one, other) => {
    const a = values.get(one), b = values.get(other);
    const none = (a === null || a === "") - (b === null || b === "");
    if (none) return none;
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return (down ? -order : order) || one - other;
  });
};

raysae.texts = (table) => {
  if (table.texts) return table.texts;
  const { tokens, promotes, attribute, description } = table.columns;
  table.texts = tokens.map((found, number) => [
    description[number], ...(found || []), ...(promotes[number] || []), attribute[number],
  ].filter(Boolean).join("\n").toLowerCase());
  return table.texts;
};

raysae.Grid = class {
  constructor(place, table, chosen) {
    this.place = place; this.table = table; this.chosen = chosen;
    this.numbers = []; this.selected = null; this.rowHeight = 30; this.drawn = new Map();
    this.head = raysae.el("div.row.head", { role: "row", "aria-rowindex": 1 });
    this.space = raysae.el("div.space", { role: "presentation" });
    this.body = raysae.el("div.body", { role: "rowgroup" }, this.space);
    place.append(raysae.el("div", { role: "rowgroup" }, this.head), this.body);
    this.body.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.fit()).observe(place);
    place.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("[data-feature]");
      if (row) this.chosen(Number(row.dataset.feature));
    });
  }

  // The columns that have values and room, with as many characters as they need.
  fit() {
    const width = this.place.clientWidth;
    const key = width > 0 ? String(width) : "";
    if (!key || key === this.fitted) return;
    this.fitted = key;
    const has = (one) => !one.spare || (this.table.columns[one.key] || []).some((value) => value !== null);
    this.columns = raysae.COLUMNS.filter((one) => width >= (one.from || 0) && has(one));
    if (!(this.table.columns.effect || []).some((value) => value !== null)) {
      this.columns = this.columns.filter((one) => one.key !== "effect");
    }
    this.place.style.setProperty("--columns", this.columns.map((one) => one.width).join(" "));
    this.place.setAttribute("aria-colcount", this.columns.length);
    this.titles();
    this.clear();
  }

  titles() {
    const sort = this.sort || "", key = sort.replace(/^-/, "");
    this.head.replaceChildren(...(this.columns || []).map((one) => {
      const down = sort.startsWith("-"), here = one.key === key;
      const about = one.key === "effect" && this.table.measure ? `${one.about}: ${this.table.measure}` : one.about;
      return raysae.el("div.cell", { role: "columnheader", "aria-sort": here ? (down ? "descending" : "ascending") : "none" },
        raysae.el("button", { type: "button", title: `${about}; sort`, "data-sort": one.key,
          onclick: () => this.onsort(here ? (down ? one.key : `-${one.key}`) : (one.key === "feature" || one.key === "label" ? one.key : `-${one.key}`)) },
        one.title, raysae.el("span.arrow", { "aria-hidden": "true" }, here ? (down ? "▼" : "▲") : "")));
    }));
  }

  show(numbers, sort) {
    this.sort = sort;
    this.numbers = raysae.sorted(this.table, numbers, sort);
    this.place.setAttribute("aria-rowcount", numbers.length + 1);
    this.space.style.height = `${numbers.length * this.rowHeight}px`;
    this.titles();
    this.clear();
  }

  clear() {
    for (const row of this.drawn.values()) row.remove();
    this.drawn.clear();
    this.draw();
  }

  draw() {
    if (!this.columns) return;
    const first = Math.max(0, Math.floor(this.body.scrollTop / this.rowHeight) - 6);
    const last = Math.min(this.numbers.length, first + Math.ceil(this.body.clientHeight / this.rowHeight) + 12);
    for (const [place, row] of this.drawn) {
      if (place < first || place >= last) { row.remove(); this.drawn.delete(place); }
    }
    for (let place = first; place < last; place++) {
      if (!this.drawn.has(place)) {
        const row = this.row(place);
        this.drawn.set(place, row);
        this.space.append(row);
      }
    }
    this.mark();
  }

  // The row in sight that the tab key reaches: the selected one, or else the first.
  mark() {
    const places = [...this.drawn.keys()].sort((a, b) => a - b), top = this.body.scrollTop / this.rowHeight;
    const selected = places.find((place) => this.numbers[place] === this.selected);
    const reached = selected ?? places.find((place) => place >= top) ?? places[0];
    for (const [place, row] of this.drawn) row.tabIndex = place === reached ? 0 : -1;
  }

  row(place) {
    const number = this.numbers[place];
    const cells = this.columns.map((one) => {
      const value = raysae.value(this.table, one.key, number);
      const text = one.key === "label" ? value : one.form ? one.form(value) : raysae.number(value);
      return raysae.el(one.key === "label" ? "div.cell.text" : "div.cell", { role: "gridcell" }, one.key === "label" ? raysae.el("bdi", {}, text) : text);
    });
    const dead = this.table.columns.live[number] ? "" : ".dead";
    return raysae.el(`div.row${dead}`, {
      role: "row", "data-feature": number, "aria-rowindex": place + 2,
      "aria-selected": String(number === this.selected), "--top": `${place * this.rowHeight}px`,
    }, cells);
  }

  select(number) {
    this.selected = number;
    for (const row of this.drawn.values()) row.setAttribute("aria-selected", String(Number(row.dataset.feature) === number));
    this.mark();
  }

  reveal(number) {
    const place = this.numbers.indexOf(number), top = place * this.rowHeight;
    if (place < 0) return;
    const bottom = top + this.rowHeight;
    if (top < this.body.scrollTop) this.body.scrollTop = top;
    else if (bottom > this.body.scrollTop + this.body.clientHeight) this.body.scrollTop = bottom - this.body.clientHeight;
    this.draw();
  }

  key(event) {
    if (event.target.closest("button")) return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || !this.numbers.length) return;
    event.preventDefault();
    const here = this.numbers.indexOf(this.selected);
    const next = Math.max(0, Math.min(this.numbers.length - 1, (here < 0 ? -1 : here) + steps[event.key]));
    this.chosen(this.numbers[next], false);
    this.reveal(this.numbers[next]);
    this.drawn.get(next)?.focus({ preventScroll: true });
  }
};
