// Two runs side by side: what differs, by how much, and whether that is more than the sampling error.

/** What differences are worth (exporters/diff.py), in words. */
const WORTHS = {
  differs: "more than noise",
  follows: "more than noise, but only because of others",
  unsure: "perhaps more than noise",
  noise: "within the sampling error",
  untested: "too few samples to tell from noise",
};
/** In which order rows stand: what differs by itself first. */
const RANKS = { differs: 3, follows: 2, unsure: 1, noise: 0, untested: 0 };
const MATTERS = new Set(["differs", "follows"]);

/** Figures of two summaries (before, after) in one measure: shares of the time, or running time. */
class Compared {
  /** whole: whether nothing is filtered out, so that the intervals of the whole recordings hold. */
  constructor(data, summaries, whole, measure) {
    Object.assign(this, { data, summaries, whole, measure });
  }

  /** What a weight is in the measure: of 1, or nanoseconds of a run (on average, where a side has several). */
  figure(side, weight) {
    const { whole, parts } = this.summaries[side];
    if (this.measure === "time") return weight / parts.length;
    return whole ? weight / whole : 0;
  }

  text(figure) {
    return this.measure === "time" ? duration(figure) : percent(figure);
  }

  /** A difference with its sign; shares in percentage points. */
  signed(figure, unit = " points") {
    const size = this.measure === "time" ? duration(Math.abs(figure)) : (100 * Math.abs(figure)).toFixed(2) + unit;
    return (figure < 0 ? "−" : "+") + size;
  }

  /** {low, high, worth, before, after} of a function's total or own figure; null where it was not tested, or something is filtered out. */
  verdict(code, part) {
    const found = this.whole && this.data.comparison.functions[code]?.[this.measure]?.[part];
    if (!found) return null;
    const [low, high, worth, before, after] = found;
    return { low, high, worth: this.data.comparison.worths[worth], before, after };
  }

  /** What a box's difference is worth: that of its path, or of its function where paths were not tested; null where nothing was. */
  worthOf(box) {
    const { comparison } = this.data;
    if (!this.whole || !comparison.testable) return null;
    const paths = comparison[this.measure + "_worth"];
    if (paths && box.node !== null) return comparison.worths[paths[box.node]];
    return this.verdict(box.code, box.node === null && box.level === 1 ? "own" : "total")?.worth || "untested";
  }

  /** From -1 (gone) over 0 (equal, or noise) to 1 (new), of a box of the graph whose widths are of one side. */
  change(box, side) {
    const worth = this.worthOf(box);
    if (box.level === 0 || (worth !== null && !MATTERS.has(worth))) return 0;
    const [mine, theirs] = [this.figure(side, box.value), this.figure(1 - side, box.other)];
    const more = side ? mine - theirs : theirs - mine;
    return more / Math.max(mine, theirs);
  }

  words(box, widths) {
    const side = this.summaries.indexOf(widths);
    const figures = [this.figure(side, box.value), this.figure(1 - side, box.other)];
    const [before, after] = side ? figures.reverse() : figures;
    const here = "A " + this.text(before) + ", B " + this.text(after) + ": " + this.signed(after - before) + " on this path";
    const worth = this.worthOf(box);
    return [here, worth ? WORTHS[worth] : "", this.interval(box.code, "total")].filter(Boolean);
  }

  /** What is known of a function as a whole. */
  interval(code, part) {
    const verdict = this.verdict(code, part);
    if (!verdict) return "";
    return "the function in all: " + this.signed(verdict.low) + " to " + this.signed(verdict.high) + ", " + WORTHS[verdict.worth];
  }
}

const DIFFERENCE_COLUMNS = [
  { key: "name", words: "Name" },
  { key: "before", words: "A" },
  { key: "after", words: "B" },
  { key: "more", words: "B − A" },
  { key: "interval", words: "Interval" },
];

/** The table of what differs, the largest difference first; what differs more than by the sampling error stands before all else. */
class Differences {
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.sort = { key: "more", down: true };
    this.most = FIRST_ROWS;
  }

  show(compared, found, marked) {
    Object.assign(this, { compared, found, marked });
    sortableHeads(DIFFERENCE_COLUMNS, this.sort, () => this.show(this.compared, this.found, this.marked));
    this.fill();
  }

  get by() {
    return byId("by").value;
  }

  /** Rows of both runs by what they have in common: a name, or a function. */
  rows() {
    const part = byId("part").value;
    const rows = new Map();
    for (const [side, summary] of this.compared.summaries.entries()) {
      for (const row of this.model.rows(summary, this.by)) {
        const key = this.by === "function" || this.by === "module" ? row.key : row.group;
        if (!rows.has(key)) rows.set(key, { ...row, name: row.group, weights: [0, 0] });
        rows.get(key).weights[side] += row[part];
      }
    }
    for (const row of rows.values()) {
      [row.before, row.after] = row.weights.map((weight, side) => this.compared.figure(side, weight));
      row.verdict = this.by === "function" ? this.compared.verdict(row.key, part) : null;
      // What was tested leaves out what nobody saw (late samples), so it has figures of its own.
      if (row.verdict) [row.before, row.after] = [row.verdict.before, row.verdict.after];
      row.more = row.after - row.before;
    }
    return [...rows.values()];
  }

  fill() {
    const all = this.rows();
    const rows = this.by === "function" && this.found ? all.filter((row) => this.found[row.key]) : all;
    const { key, down } = this.sort;
    const figure = {
      name: (row) => row.name,
      before: (row) => row.before,
      after: (row) => row.after,
      more: (row) => Math.abs(row.more),
      interval: (row) => (row.verdict ? row.verdict.high - row.verdict.low : 0),
    }[key];
    const rank = (row) => (key === "more" ? RANKS[row.verdict?.worth || "untested"] : 0);
    const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
    const order = (one, other) => rank(one) - rank(other) || compare(figure(one), figure(other));
    rows.sort((one, other) => (down ? -1 : 1) * order(one, other) || compare(one.name, other.name) || one.key - other.key);
    fillRows(rows, all.length, this.most, this.by === "function" ? this.marked : null, (row) => this.row(row));
    if (!this.compared.whole) byId("rows").textContent += ", not tested: something is left out";
    byId("neighbours").hidden = true;
  }

  row(row) {
    const { compared } = this;
    const { verdict } = row;
    const isTested = this.by === "function" && compared.whole && this.model.data.comparison.testable;
    const worth = verdict?.worth || (isTested ? "untested" : "");
    const noise = worth !== "" && !MATTERS.has(worth);
    const change = row.more === 0 || noise ? "" : row.more > 0 ? "more" : "less";
    const figure = (value) => make("td", {}, make("data", { value }, compared.text(value)));
    const interval = verdict ? [verdict.low, verdict.high].map((end) => compared.signed(end, "")).join(" … ") : "";
    const told = make("td", { class: "interval", title: WORTHS[worth] || "" }, make("span", { class: "worth" }, worth), " ", interval);
    return make(
      "tr",
      { class: [this.by === "function" && row.key === this.marked ? "marked" : "", noise ? "dim" : ""].join(" ") },
      nameCell(this.model, row, this.by === "function" && row.key === this.marked, () => this.actions.pick(this.by, row)),
      figure(row.before),
      figure(row.after),
      make("td", {}, make("span", { class: "change " + change }, make("data", { value: row.more }, compared.signed(row.more)))),
      told,
    );
  }
}

/** The parts of the last tab where two runs are compared. */
function aboutComparison(data, letters) {
  const parts = [plainTable("How they are compared", ["What", "How"], data.comparison.lines.map(([what, text]) => [what, isolated(text)]))];
  for (const [index, run] of data.runs.entries()) {
    parts.push(make("h2", {}, letters[index] + ": ", isolated(run.title)), plainTable("How far to trust it", ["What", "How"], run.quality));
  }
  return parts;
}
