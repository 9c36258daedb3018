"use strict";
// The page of all sites: a grid of layers and positions, a table, and a search through all of them.

raysae.METRICS = [
  ["live", "live features", (site) => site.live / Math.max(site.features, 1), (site) => raysae.number(site.live)],
  ["density", "median density", (site) => site.density, (site) => raysae.percent(site.density)],
  ["coherence", "coherence", (site) => site.coherence, (site) => raysae.number(site.coherence)],
];
raysae.FOUND = 200;

raysae.Sites = class {
  constructor(run) {
    this.run = run;
    this.sort = "layer";
    raysae.withoutReport();
    document.getElementById("source").textContent = run.source;
    const metric = document.getElementById("metric");
    for (const [key, title] of raysae.METRICS) metric.append(raysae.el("option", { value: key }, title));
    metric.addEventListener("change", () => raysae.go({ by: metric.value }));
    const search = document.getElementById("q");
    search.addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => raysae.go({ q: search.value.trim() ? search.value : null }), 250);
    });
    addEventListener("hashchange", () => this.follow());
    this.phases();
    this.table();
    this.follow();
  }

  follow() {
    const state = raysae.state(), search = document.getElementById("q"), metric = document.getElementById("metric");
    if (search !== document.activeElement) search.value = state.get("q") || "";
    metric.value = raysae.METRICS.some(([key]) => key === state.get("by")) ? state.get("by") : "live";
    this.grids(raysae.METRICS.find(([key]) => key === metric.value));
    this.search(state.get("q") || "");
  }

  grids([, title, value, text]) {
    const hookpoints = [...new Set(this.run.sites.map((site) => site.hookpoint))];
    const known = this.run.sites.map(value).filter((one) => one !== null);
    const least = Math.min(...known), most = Math.max(...known);
    document.getElementById("grids").replaceChildren(...hookpoints.map((hookpoint) => {
      const mine = this.run.sites.filter((site) => site.hookpoint === hookpoint);
      const layers = [...new Set(mine.map((site) => site.layer))].sort((a, b) => b - a), positions = [...new Set(mine.map((site) => site.position))];
      const at = new Map(mine.map((site) => [`${site.layer} ${site.position}`, site]));
      const cell = (site) => {
        const share = value(site) === null || most === least ? 0.5 : (value(site) - least) / (most - least);
        return raysae.el("td", {}, raysae.el("a.heat", { href: `${site.site}/index.html`, "--share": share.toFixed(3), title: `${site.title}: ${title} ${text(site)}` }, text(site) || "–"));
      };
      return raysae.el("div.scroll", {}, raysae.el("table.heatmap", {}, raysae.el("caption", {}, `${hookpoint}: ${title}, by layer and position`),
        raysae.el("thead", {}, raysae.el("tr", {}, raysae.el("th", { scope: "col" }, "layer"), positions.map((position) => raysae.el("th", { scope: "col" }, position)))),
        raysae.el("tbody", {}, layers.map((layer) => raysae.el("tr", {}, raysae.el("th", { scope: "row" }, String(layer)),
          positions.map((position) => at.has(`${layer} ${position}`) ? cell(at.get(`${layer} ${position}`)) : raysae.el("td")))))));
    }));
  }

  table() {
    const columns = [["layer", "site"], ["features", "features"], ["live", "live"], ["labelled", "with contexts"], ["density", "median density"], ["coherence", "coherence"]];
    const down = this.sort.startsWith("-"), key = this.sort.replace(/^-/, "");
    const order = this.run.sites.map((site, place) => [site, place]).sort(([a, i], [b, j]) => (key === "layer" ? 0 : down ? b[key] - a[key] : a[key] - b[key]) || (key === "layer" && down ? j - i : i - j));
    const head = columns.map(([name, title]) => raysae.el("th", { scope: "col", "aria-sort": name === key ? (down ? "descending" : "ascending") : "none" },
      raysae.el("button", { type: "button", onclick: () => { this.sort = name === key && !down ? `-${name}` : name === key ? name : name === "layer" ? name : `-${name}`; this.table(); } },
        title, raysae.el("span.arrow", { "aria-hidden": "true" }, name === key ? (down ? "▼" : "▲") : ""))));
    document.getElementById("list").replaceChildren(raysae.el("table.plain", {}, raysae.el("thead", {}, raysae.el("tr", {}, head)), raysae.el("tbody", {}, order.map(([site]) => raysae.el("tr", {},
      raysae.el("td", {}, raysae.el("a", { href: `${site.site}/index.html` }, this.run.sites.some((one) => one.hookpoint !== site.hookpoint) ? `${site.hookpoint}, ` : "", `layer ${site.layer}, position ${site.position}`)),
      [raysae.number(site.features), raysae.number(site.live), raysae.number(site.labelled), raysae.percent(site.density), raysae.number(site.coherence)].map((text) => raysae.el("td.num", {}, text)))))));
  }

  phases() {
    const missing = Object.keys(this.run.missing);
    if (missing.length) document.getElementById("phases").append(raysae.el("h2", {}, "Not known of these features"),
      raysae.el("ul", {}, missing.map((phase) => raysae.el("li", {}, `${raysae.PHASES[phase]}: ${raysae.notRun(phase)}`))));
  }

  // One site after another; what is typed meanwhile ends the search.
  async search(query) {
    if (query === this.query) return;
    this.query = query;
    const wanted = query.toLowerCase(), place = document.getElementById("found"), count = document.getElementById("count");
    place.hidden = !wanted.trim();
    place.replaceChildren();
    count.textContent = "";
    if (!wanted.trim()) return;
    const list = raysae.el("ul.links.found");
    place.append(list);
    let found = 0, read = 0;
    for (const site of this.run.sites) {
      try {
        if (!raysae.tables.has(site.site)) await raysae.load(`${site.site}/table.js`);
      } catch (error) {
        count.textContent = error.message;
        return;
      }
      if (this.query !== query) return;
      read += 1;
      const table = raysae.tables.get(site.site);
      raysae.texts(table).forEach((text, number) => {
        if (!text.includes(wanted)) return;
        found += 1;
        if (found <= raysae.FOUND) list.append(raysae.el("li", {}, raysae.el("a", { href: `${site.site}/index.html#f=${number}` }, `${site.title}, #${number}`), raysae.el("span.value", {}, raysae.percent(table.columns.density[number])), raysae.el("bdi.soft", {}, raysae.label(table, number))));
      });
      count.textContent = `${raysae.number(found)} features at ${read} of ${this.run.sites.length} sites${found > raysae.FOUND ? `; the first ${raysae.FOUND} are listed` : ""}`;
    }
  }
};

new raysae.Sites(raysae.run);
