(() => {
  "use strict";

  // Tables: a click on a head sorts, a text searches. What has no value stays last.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell === undefined ? "" : cell.dataset.v ?? cell.textContent.trim();
    const number = Number(text.replaceAll(",", "").replace(/%$/, "").replace("−", "-"));
    return text === "" ? null : Number.isNaN(number) ? text : number;
  };
  const rank = (value) => (value === null ? 2 : typeof value === "number" ? 0 : 1);
  const compare = (one, other, sign) => {
    if (rank(one) !== rank(other)) return rank(one) - rank(other);
    if (one === null) return 0;
    return sign * (typeof one === "number" ? one - other : one.localeCompare(other, undefined, {numeric: true}));
  };
  const sort = (table, head, column) => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    rows.sort((one, other) => compare(one[0], other[0], up ? 1 : -1));
    body.append(...rows.map((pair) => pair[1]));
  };
  const makeSortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if (head.textContent.trim() === "") return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head, column));
    });
  };
  const makeSearchable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 8) return;
    const bar = document.createElement("div"), field = document.createElement("input"), told = document.createElement("output");
    bar.className = "find";
    field.type = "search";
    field.placeholder = "search";
    field.setAttribute("aria-label", `search the table: ${table.getAttribute("aria-label") ?? ""}`);
    bar.append(field, told);
    table.parentElement.before(bar);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const search = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter((word) => word !== "");
      let left = 0;
      rows.forEach((row, number) => {
        row.hidden = !words.every((word) => texts[number].includes(word));
        if (!row.hidden) left += 1;
      });
      told.textContent = words.length ? `${left.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : "";
    };
    let waiting = 0;
    field.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 60); });
  };
  for (const table of document.querySelectorAll("table.data")) { makeSortable(table); makeSearchable(table); }

  // A chosen point: its features, where there is a page of them, else its row.
  const pick = (name) => {
    const row = document.getElementById(name);
    if (row === null) return;
    if (row.dataset.href) { location.assign(row.dataset.href); return; }
    for (const other of document.querySelectorAll("tr.picked")) other.classList.remove("picked");
    row.hidden = false;
    row.classList.add("picked");
    row.scrollIntoView({block: "center"});
  };

  // Charts follow the scheme of colours, and print dark on white.
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const paint = (models, dark) => {
    const ink = dark ? "#e6e9ef" : "#1d2430", soft = dark ? "#a3acba" : "#596273", line = dark ? "#4a5260" : "#c9ced8";
    for (const model of models) {
      const kind = model.type;
      if (kind.endsWith("Axis")) {
        model.setv({axis_label_text_color: ink, major_label_text_color: soft, axis_line_color: line,
                    major_tick_line_color: line, minor_tick_line_color: null});
      } else if (kind === "Grid") {
        model.setv({grid_line_color: line});
      } else if (kind === "ColorBar") {
        model.setv({title_text_color: ink, major_label_text_color: soft, major_tick_line_color: line, bar_line_color: null});
      } else if (kind === "Legend") {
        model.setv({label_text_color: ink});
      } else if (kind === "GlyphRenderer" && model.name === "soft") {
        model.glyph.setv({text_color: {value: ink}});
      }
    }
  };

  // The legend under a chart isolates one of its lines; a second click shows all again.
  const makeLegend = (legend, named) => {
    const buttons = [...legend.querySelectorAll("button")];
    let alone = null;
    const show = () => {
      for (const button of buttons) {
        const there = alone === null || alone === button;
        button.setAttribute("aria-pressed", String(alone === button));
        button.classList.toggle("off", !there);
        for (const model of named.get(button.dataset.key) ?? []) model.visible = there;
      }
    };
    for (const button of buttons) button.addEventListener("click", () => { alone = alone === button ? null : button; show(); });
  };

  const draw = async () => {
    const found = JSON.parse(document.getElementById("charts")?.textContent ?? "null");
    if (found === null || typeof Bokeh === "undefined") return;
    await Bokeh.embed.embed_items(found.docs, found.items);
    const models = Bokeh.documents.flatMap((one) => [...one._all_models.values()]);
    const named = new Map();
    for (const model of models) {
      if (model.name) named.set(model.name, [...(named.get(model.name) ?? []), model]);
      if (model.type === "ColumnDataSource" && "row" in model.data) {
        const chosen = model.selected;
        chosen.properties.indices.change.connect(() => {
          if (chosen.indices.length) pick(model.data.row[chosen.indices[0]]);
        });
      }
    }
    paint(models, scheme.matches);
    scheme.addEventListener("change", () => paint(models, scheme.matches));
    addEventListener("beforeprint", () => paint(models, false));
    addEventListener("afterprint", () => paint(models, scheme.matches));
    for (const legend of document.querySelectorAll(".legend")) makeLegend(legend, named);
    document.body.dataset.drawn = "yes";
  };
  draw().catch((error) => {
    document.body.dataset.drawn = "no";
    const note = document.createElement("p");
    note.className = "warn";
    note.textContent = `The charts could not be drawn (${error}); the pictures beside this page show them.`;
    document.querySelector("h1").after(note);
  });
})();
