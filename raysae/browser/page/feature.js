"use strict";
// One feature: figures, histogram, tokens, effect, track, and its contexts.

raysae.EFFECTS = {
  ce: ["cross-entropy", "nats a token"], kl: ["KL(clean || changed)", "nats a token"],
  accuracy: ["accuracy of the answers", ""], ce_answer: ["cross-entropy of the answer", "nats a token"],
  away: ["1 − cosine of the final embedding", ""],
};

raysae.MODES = { zero: "set to zero", mean: "set to its mean", clamp: "clamped", steer: "steered" };

raysae.section = (title, about, ...children) => raysae.el("section.part", {},
  raysae.el("h3", {}, title), about ? raysae.el("p.about", {}, about) : null, ...children);

raysae.none = (text) => raysae.el("p.none", {}, text);

raysae.Feature = class {
  constructor(table, chunk, number) {
    this.table = table; this.words = chunk.words; this.number = number;
    this.found = chunk.features[number % table.chunk_size];
    this.figures = this.found.figures;
  }

  word(number) { return this.words[number]; }

  link(number, site, text) {
    const place = site && site !== this.table.site ? `../${site}/index.html` : "";
    return raysae.el("a", { href: `${place}#f=${number}` }, text || `#${number}`);
  }

  draw() {
    const live = this.figures.active > 0;
    return [this.title(), this.tiles(), live ? null : raysae.none("Dead: it is active at none of the rows that were read."),
      this.description(),
      raysae.el("div.parts", {}, live ? [this.tokens(), this.promoted(), this.histogram(), this.alike(), this.effect(), this.track(), this.attributes()]
        : [this.promoted(), this.alike(), this.effect(), this.track()]),
      live ? this.contexts() : null];
  }

  title() {
    const label = raysae.label(this.table, this.number);
    return raysae.el("div.title", {}, raysae.el("h2", { tabindex: -1 }, `Feature ${this.number}`),
      raysae.el("span.soft", {}, this.table.title), raysae.el("bdi.lead", {}, label));
  }

  tiles() {
    const one = this.figures, n = raysae.number, p = raysae.percent;
    const tiles = [
      ["density", p(one.density), `active at ${n(one.active)} of ${n(one.rows)} rows; ${raysae.interval(one.density_low, one.density_high, p)}`],
      ["maximum", n(one.max_activation) || "–", one.mean_activation === null ? "" : `mean ${n(one.mean_activation)}, SD ${n(one.std_activation)}`],
      ["coherence", one.coherence === null ? "–" : n(one.coherence), one.coherence_texts ? `of ${one.coherence_texts} unique texts` : "not defined"],
      this.stability(),
    ];
    const place = this.table.position === "all" || !/^-?\d+$/.test(this.table.position);
    if (place && one.mean_index !== null) tiles.push(["place in the text", n(one.mean_index), `token; first token ${p(one.first_share)}`]);
    return raysae.el("dl.tiles", {}, tiles.map(([name, value, about]) => raysae.el("div", {},
      raysae.el("dt", {}, name), raysae.el("dd", {}, raysae.el("b", {}, value), raysae.el("small", {}, about)))));
  }

  stability() {
    const one = this.figures, n = raysae.number;
    const kinds = new Map(this.found.least_cosine), said = [];
    if (kinds.has("layers")) said.push(`next layer ${n(kinds.get("layers")) || "no match"}`);
    if (one.seed_agreement !== null) said.push(`nearest of other seeds ${n(one.seed_agreement)}, chance ${n(one.seed_chance)}`);
    if (kinds.has("seeds")) return ["stability", n(kinds.get("seeds")) || "–", said.join("; ")];
    if (one.seed_agreement !== null) return ["stability", n(one.seed_agreement), said.join("; ")];
    if (said.length) return ["stability", n(kinds.get("layers")) || "–", "cosine with its match in the next layer; one seed a site"];
    return ["stability", "–", raysae.notRun("stability") ? "not run; one seed a site" : "was not compared"];
  }

  description() {
    const one = this.found.description;
    if (!one) return null;
    const score = one.score === null ? "" : `tells where it is active with balanced accuracy ${raysae.number(one.score)} (${raysae.interval(one.low, one.high)}, n = ${one.n}; another's description ${raysae.number(one.control)})`;
    return raysae.el("p.described", {}, raysae.el("bdi", {}, one.text), raysae.el("small", {}, score));
  }

  bars(rows, form, title) {
    const most = Math.max(...rows.map((row) => Math.abs(row[1])), 1e-30);
    return raysae.el("ol.bars", { "aria-label": title }, rows.map(([text, value, about]) => raysae.el("li", { title: about || null },
      raysae.token(text), raysae.el("span.bar", { "--share": `${(100 * Math.abs(value)) / most}%`, "aria-hidden": "true" }), raysae.el("span.value", {}, form(value)))));
  }

  tokens() {
    const rows = (this.found.tokens || []).map(([word, count, share, fires]) =>
      [this.word(word), share, `${raysae.number(count)} of its active rows; active at ${raysae.percent(fires)} of this token's rows`]);
    const kinds = this.figures.token_kinds;
    return raysae.section("Most frequent tokens", `share of its active rows; ${raysae.number(kinds)} kind${kinds === 1 ? "" : "s"} of token`,
      rows.length ? this.bars(rows, raysae.percent, "Most frequent tokens") : raysae.none("none"));
  }

  promoted() {
    const lists = [["promotes", "Promoted"], ["suppresses", "Suppressed"]];
    if (!this.found.promotes) {
      const why = this.table.columns.contexts[this.number] ? raysae.run.lens : "Only features with contexts have them.";
      return raysae.section("Promoted and suppressed tokens", null, raysae.none(why || "not known"));
    }
    return raysae.section("Promoted and suppressed tokens", "by its decoder direction (linearised logit lens: ranks, no logits)", raysae.el("div.two", {}, lists.map(([name, title]) =>
      raysae.el("div", {}, raysae.el("h4", {}, title), this.bars(this.found[name].map(([word, by]) => [this.word(word), by]), (value) => raysae.number(value, 2), title)))));
  }

  histogram() {
    const [first, counts] = this.found.histogram;
    if (first === null || !counts.length) return null;
    return raysae.section("Activations", `all ${raysae.number(this.figures.active)} of them`, raysae.histogram(first, counts, this.figures.max_activation));
  }

  alike() {
    const rows = this.found.alike;
    const list = rows && rows.length ? raysae.el("ul.links", {}, rows.map(([number, cosine]) => raysae.el("li", {}, this.link(number),
      raysae.el("span.value", {}, raysae.number(cosine)), raysae.el("bdi.soft", {}, raysae.label(this.table, number)))))
      : raysae.none(rows ? "none" : "Only features with contexts have them.");
    return raysae.section("Alike features", "cosine of the decoder directions, at this site", list);
  }

  attributes() {
    const rows = this.found.attributes;
    if (!rows.length) return null;
    const n = raysae.number, head = ["attribute", "r [95% CI]", "permuted", "prec., recall"];
    return raysae.section("Known attributes", "correlation with attributes of the text; permuted: with these at random", raysae.el("div.scroll", { tabindex: 0, role: "region", "aria-label": "Attributes" }, raysae.el("table", {},
      raysae.el("thead", {}, raysae.el("tr", {}, head.map((name) => raysae.el("th", { scope: "col" }, name)))),
      raysae.el("tbody", {}, rows.map(([name, r, low, high, permuted, precision, recall]) => raysae.el("tr", {},
        raysae.el("td.wrap", {}, raysae.el("bdi", {}, name)), raysae.el("td.num", {}, n(r), low === null ? null : raysae.el("small", {}, ` [${n(low, 2)}, ${n(high, 2)}]`)), [n(permuted, 2), precision === null ? "" : `${n(precision, 2)}, ${n(recall, 2)}`].map((text) => raysae.el("td.num", {}, text))))))));
  }

  effect() {
    const title = "Causal effect", why = raysae.notRun("ablation"), one = this.found.effect;
    if (why) return raysae.section(title, null, raysae.none(why));
    if (!one) return raysae.section(title, null, raysae.none("This feature was not among those ablated."));
    const how = raysae.run.ablation, mode = raysae.MODES[how.mode] || "changed";
    const about = `${mode}${how.mode === "clamp" || how.mode === "steer" ? ` (${raysae.number(how.value)})` : ""}: change over ${how.split || ""} texts, of which ${raysae.number(one.texts)} are touched`;
    const kind = one.kind === "control" ? raysae.el("p.about", {}, "a control of ", this.link(one.matched_to), ", of about equal density") : raysae.el("p.about", {}, `rank ${one.rank} at this site by ${how.rank}`);
    return raysae.section(title, about, raysae.el("div.scroll", { tabindex: 0, role: "region", "aria-label": "Effects" }, raysae.el("table.effects", {}, raysae.el("thead", {}, raysae.el("tr", {}, ["effect", "change [95% CI]", "beside 0"].map((name) => raysae.el("th", { scope: "col" }, name)))),
      raysae.el("tbody", {}, one.effects.map(([name, value, low, high]) => this.effectRow(name, value, low, high)))), kind,
    one.logprobs.length ? raysae.el("p.about", {}, `log-probability: ${one.logprobs.map(([token, by]) => `${token} ${raysae.number(by)}`).join(", ")}`) : null));
  }

  effectRow(name, value, low, high) {
    const [title, unit] = raysae.EFFECTS[name] || [name, ""], n = raysae.number;
    const most = Math.max(Math.abs(value), Math.abs(low || 0), Math.abs(high || 0));
    return raysae.el("tr", {}, raysae.el("td.wrap", {}, title, unit ? raysae.el("small", {}, ` ${unit}`) : null),
      raysae.el("td.num", {}, n(value), low === null ? null : raysae.el("small", {}, ` [${n(low, 2)}, ${n(high, 2)}]`)), raysae.el("td", {}, raysae.whisker(value, low, high, most)));
  }

  track() {
    const title = "Track", why = raysae.notRun("tracking"), one = this.found.track;
    if (why) return raysae.section(title, null, raysae.none(why));
    if (!one) return raysae.section(title, null, raysae.none("It was not compared: too rarely active, or not among the densest."));
    const steps = one.chain.flatMap(([layer, number], place) => {
      const site = raysae.siteOf(layer, this.table.position, this.table.hookpoint);
      const here = layer === this.table.layer;
      const step = raysae.el(here ? "li.here" : "li", {}, raysae.el("small", {}, `layer ${layer}`), here || !site ? raysae.el("b", {}, `#${number}`) : this.link(number, site.site));
      return place ? [raysae.el("li.score", { title: "score of the match" }, `→ ${raysae.number(one.scores[place - 1], 2)}`), step] : [step];
    });
    const end = one.ends ? `Ends here: its best match in layer ${one.ends.layer} ${one.ends.score === null ? "is taken by another feature" : `scores ${raysae.number(one.ends.score, 2)}`}, the threshold is ${raysae.number(one.ends.threshold, 2)}.` : "It reaches the last layer.";
    const beside = one.beside.map(([position, number, score]) => {
      const site = raysae.siteOf(this.table.layer, position, this.table.hookpoint);
      return raysae.el("li", {}, `position ${position}: `, site ? this.link(number, site.site) : `#${number}`, raysae.el("span.value", {}, raysae.number(score, 2)));
    });
    return raysae.section(title, "features that it was matched with, and the score of each match", raysae.el("ol.track", { "aria-label": "Layers" }, steps), raysae.el("p.about", {}, end),
      beside.length ? raysae.el("ul.links", { "aria-label": "Neighbouring positions" }, beside) : null);
  }

  contexts() {
    const rows = this.found.contexts;
    if (!rows.length) return raysae.section("Contexts", null, raysae.none("It has none: contexts are made of the densest and strongest features (labels.features)."));
    const bands = [...new Set(rows.map((row) => row[0]))].sort((a, b) => (a === -1 ? -1 : b === -1 ? 1 : b - a));
    const count = bands.filter((band) => band >= 0).length;
    const groups = bands.map((band) => {
      const mine = rows.filter((row) => row[0] === band), [, low, high] = mine[0];
      const named = band === count - 1 ? ", the strongest" : band === 0 ? ", the weakest" : "";
      const title = band === -1 ? "Strongest" : `Quantile ${band + 1} of ${count}${named}: ${raysae.number(low)} to ${raysae.number(high)}`;
      return raysae.el("div.band", {}, raysae.el("h4", {}, title), mine.map((row) => this.context(row)));
    });
    const scale = raysae.el("span.scale", {}, "0 ", raysae.el("span.ramp", { "aria-hidden": "true" }), ` ${raysae.number(this.figures.max_activation)}`);
    const few = rows[0][10] ? "; at this site only the outlined token is read" : "";
    return raysae.section("Contexts", null, raysae.el("p.about", {}, `tokens by strength of the activation, the context's own outlined${few} `, scale), groups);
  }

  context([, , , activation, split, sequence, document, marked, pieces, known]) {
    const strength = new Map(known), most = this.figures.max_activation || 1;
    const tokens = pieces.map((word, place) => {
      const value = strength.get(place), own = place === marked;
      const classes = ["token", value ? "fires" : "", own ? "own" : ""].filter(Boolean).join(".");
      return raysae.el(`bdi.${classes}`, { "--share": value ? Math.min(value / most, 1).toFixed(3) : null, title: value ? raysae.number(value) : null }, this.word(word).replaceAll("\n", "↵"));
    });
    const from = `${split}, sequence ${sequence}${document === null ? "" : `, row ${document} of the data set`}`;
    return raysae.el("div.context", {}, raysae.el("span.value", { title: from }, raysae.number(activation)), raysae.el("p", { dir: "auto" }, tokens));
  }
};
