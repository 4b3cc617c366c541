// Two runs side by side: what differs, by how much, and whether that is more than the sampling error.

/** Figures of two summaries (before, after) in one measure: shares of the time, or running time. */
class Compared {
  /** whole: whether nothing is filtered out, so that the intervals of the whole recordings hold. */
  constructor(data, summaries, whole, measure) {
    Object.assign(this, { data, summaries, whole, measure });
  }

  /** What a weight is in the measure: of 1, or nanoseconds. */
  figure(side, weight) {
    if (this.measure === "time") return weight;
    const { whole } = this.summaries[side];
    return whole ? weight / whole : 0;
  }

  text(figure) {
    return this.measure === "time" ? duration(figure) : percent(figure);
  }

  /** A difference with its sign. */
  signed(figure) {
    const size = this.measure === "time" ? duration(Math.abs(figure)) : (100 * Math.abs(figure)).toFixed(2) + " points";
    return (figure < 0 ? "−" : "+") + size;
  }

  /** {low, high, differs} of a function's total or own figure; null where that is not known. */
  verdict(code, part) {
    const row = this.whole ? this.data.comparison.functions[code] : undefined;
    const found = row?.[this.measure]?.[part];
    return found ? { low: found[0], high: found[1], differs: found[2] } : null;
  }

  /** From -1 (gone) over 0 (equal, or noise) to 1 (new), of a box of the graph whose widths are of one side. */
  change(box, side) {
    if (box.level === 0) return 0;
    if (this.verdict(box.code, "total")?.differs === false) return 0;
    const [mine, theirs] = [this.figure(side, box.value), this.figure(1 - side, box.other)];
    const more = side ? mine - theirs : theirs - mine;
    return more / Math.max(mine, theirs);
  }

  words(box, widths) {
    const side = this.summaries.indexOf(widths);
    const figures = [this.figure(side, box.value), this.figure(1 - side, box.other)];
    const [before, after] = side ? figures.reverse() : figures;
    const here = "A " + this.text(before) + ", B " + this.text(after) + ": " + this.signed(after - before) + " on this path";
    return [here, this.interval(box.code, "total")].filter(Boolean);
  }

  /** What is known of a function as a whole. */
  interval(code, part) {
    const verdict = this.verdict(code, part);
    if (!verdict) return "";
    const range = this.signed(verdict.low) + " to " + this.signed(verdict.high);
    return "the function in all: " + range + (verdict.differs ? "" : ", which may be the sampling error");
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
      row.more = row.after - row.before;
      row.verdict = this.by === "function" ? this.compared.verdict(row.key, part) : null;
    }
    return [...rows.values()];
  }

  fill() {
    const all = this.rows();
    const rows = this.by === "function" && this.found ? all.filter((row) => this.found[row.key]) : all;
    const { key, down } = this.sort;
    const rank = {
      name: (row) => row.name,
      before: (row) => row.before,
      after: (row) => row.after,
      more: (row) => Math.abs(row.more) + (row.verdict?.differs ? 1e18 : 0),
      interval: (row) => (row.verdict ? row.verdict.high - row.verdict.low : 0),
    }[key];
    const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
    rows.sort((one, other) => (down ? -1 : 1) * compare(rank(one), rank(other)) || compare(one.name, other.name) || one.key - other.key);
    this.widest = rows.reduce((most, row) => Math.max(most, row.before, row.after), 0) || 1;
    fillRows(rows, all.length, this.most, this.by === "function" ? this.marked : null, (row) => this.row(row));
    byId("neighbours").hidden = true;
  }

  row(row) {
    const { compared } = this;
    const { verdict } = row;
    const noise = verdict?.differs === false;
    const change = row.more === 0 || noise ? "" : row.more > 0 ? "more" : "less";
    const figure = (value) => make("td", {}, make("data", { value }, compared.text(value)));
    const interval = verdict ? compared.signed(verdict.low) + " … " + compared.signed(verdict.high) : "";
    const told = make("td", { class: "interval" }, noise ? make("span", { class: "noise" }, "noise ") : "", interval);
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
function aboutComparison(data) {
  const parts = [plainTable("How they are compared", ["What", "How"], data.comparison.lines)];
  for (const [index, run] of data.runs.entries()) {
    parts.push(make("h2", {}, LETTERS[index] + ": ", isolated(run.title)), plainTable("How far to trust it", ["What", "How"], run.quality));
  }
  return parts;
}
