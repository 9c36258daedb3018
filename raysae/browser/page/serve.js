"use strict";
// The page of `raysae serve`: a text, its tokens, and which features are active where.

raysae.ask = async (path, body) => {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
};

raysae.Try = class {
  constructor(run) {
    this.run = run;
    this.text = document.getElementById("text");
    this.layer = document.getElementById("layer");
    this.top = document.getElementById("top");
    document.getElementById("source").textContent = [run.name, run.source].filter(Boolean).join(" · ");
    const layers = [...new Set(run.sites.map(raysae.layerOf))];
    if (run.sites.length <= run.model.most_sites) this.layer.append(raysae.el("option", { value: "" }, "all"));
    for (const layer of layers) this.layer.append(raysae.el("option", { value: layer }, layer));
    document.getElementById("ask").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.text.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.submit(); } });
    for (const field of [this.layer, this.top]) field.addEventListener("change", () => this.submit());
    addEventListener("hashchange", () => this.follow());
    this.model(run.model);
    this.follow();
  }

  // What is asked is in the address; asking is following it.
  submit() {
    raysae.go({ text: this.text.value, layer: this.layer.value, top: this.top.value === "10" ? null : this.top.value, token: null }, true);
    this.follow();
  }

  async follow() {
    const state = raysae.state(), asked = String(state);
    if (asked === this.asked) return;
    this.asked = asked;
    this.text.value = state.get("text") || "";
    const choose = (field, value) => { if ([...field.options].some((one) => one.value === value)) field.value = value; };
    choose(this.layer, state.get("layer") || "");
    choose(this.top, state.get("top") || "10");
    if (!this.text.value.trim()) return this.show(null);
    await this.ready;
    document.getElementById("go").disabled = true;
    this.say("encoding …");
    try {
      const sites = this.run.sites.filter((site) => !this.layer.value || raysae.layerOf(site) === this.layer.value);
      const token = /^\d{1,6}$/.test(state.get("token") || "") ? Number(state.get("token")) : null;
      const found = await raysae.ask("/api/encode", { text: this.text.value, sites, token, top: Number(this.top.value) });
      if (this.asked === asked) this.show(found, token);
    } catch (error) {
      if (this.asked === asked) { this.show(null); this.say(error.message, true); }
    }
    document.getElementById("go").disabled = false;
    return undefined;
  }

  say(text, wrong = false) {
    const place = document.getElementById("said");
    place.className = wrong ? "warn" : "soft";
    place.textContent = text;
  }

  model(model) {
    const told = { loading: "the model is being loaded …", ready: "model ready", missing: "no model" };
    document.getElementById("model").textContent = told[model.state];
    if (model.state === "missing") this.say(`Texts cannot be encoded: ${model.reason}. The features and the report are there all the same.`, true);
    this.ready = model.state !== "loading" ? Promise.resolve() : new Promise((done) => { setTimeout(async () => {
      try { this.model((await raysae.ask("/api/run")).model); await this.ready; } catch (error) { this.say(error.message, true); }
      done();
    }, 400); });
  }

  show(found, token) {
    const chips = document.getElementById("tokens"), sites = document.getElementById("sites");
    chips.replaceChildren();
    sites.replaceChildren();
    if (!found) return this.say("");
    const read = new Set(found.sites.flatMap((site) => site.read));
    chips.append(...found.tokens.map((text, place) => raysae.el(`button.chip${place === token ? ".chosen" : ""}`, {
      type: "button", disabled: !read.has(place), "aria-pressed": String(place === token), title: read.has(place) ? `token ${place}: the features that are the most active here` : "no site reads this token",
      onclick: () => raysae.go({ token: place === token ? null : place }, true),
    }, raysae.token(text))));
    const there = found.sites.filter((site) => site.features.length);
    sites.append(...there.map((site) => this.site(site, found.tokens, token)));
    this.say(`${found.tokens.length} tokens${found.cut ? "; the rest is longer than the model's context here and was not read" : ""}; active features at ${there.length} of ${found.sites.length} sites${token === null || token === undefined ? "" : `, ranked at token ${token}`}`);
    return undefined;
  }

  site(site, tokens, token) {
    const most = Math.max(...site.features.map((one) => one.activation));
    const rows = site.features.map((one) => {
      const strength = new Map(one.activations);
      // of a long text the part around the strongest token
      const [best] = one.activations.reduce((a, b) => (b[1] > a[1] ? b : a)), near = token ?? best;
      const from = tokens.length > 120 ? Math.max(near - 24, 0) : 0, to = tokens.length > 120 ? near + 25 : tokens.length;
      const shown = site.read.length > 1 ? raysae.el("p.line", { dir: "auto" }, from ? "… " : "", tokens.slice(from, to).map((text, number) => {
        const place = from + number;
        const value = strength.get(place);
        return raysae.piece(text, { class: `token${value ? " fires" : ""}${place === token ? " own" : ""}`, "--share": value ? Math.min(value / most, 1).toFixed(3) : null, title: value ? raysae.number(value) : null });
      }), to < tokens.length ? " …" : "") : null;
      return raysae.el("li", {}, raysae.el("div.fact", {}, raysae.el("a", { href: `/report/features/${site.site}/index.html#f=${one.feature}` }, `#${one.feature}`),
        raysae.el("span.value.fires", { "--share": (one.activation / most).toFixed(3) }, raysae.number(one.activation)), raysae.el("bdi.soft", {}, one.label.replaceAll("\n", "↵"))), shown);
    });
    const where = site.read.length === 1 ? raysae.el("span.soft", {}, " at ", raysae.token(tokens[site.read[0]])) : null;
    return raysae.el("section.site", {}, raysae.el("h2", {}, raysae.el("a", { href: `/report/features/${site.site}/index.html` }, site.site.replaceAll(",", ", ").replace(/=0*(?=\d)/g, " ").replaceAll("=", " ")), where), raysae.el("ol.active", {}, rows));
  }
};

raysae.layerOf = (site) => String(Number(/layer=(\d+)/.exec(site)[1]));

raysae.ask("/api/run").then((run) => new raysae.Try(run), (error) => { document.getElementById("said").textContent = error.message; });
