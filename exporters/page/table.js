// The table of what took the time, and who calls and is called by the function that is marked in it.

const FIRST_ROWS = 100;

const COLUMNS = [
  { key: "name", words: "Name" },
  { key: "own", words: "Self" },
  { key: "total", words: "Total" },
  { key: "samples", words: "Samples" },
  { key: "first", words: "First seen", early: true },
];

/** Heads that sort: names and moments (`early`) ascending at first, figures descending. */
function sortableHeads(columns, sort, changed) {
  const table = byId("table");
  const row = make("tr");
  for (const [index, column] of columns.entries()) {
    const sorted = column.key === sort.key;
    const arrow = make("span", { "aria-hidden": "true" }, sorted ? (sort.down ? " ▾" : " ▴") : "");
    const button = make("button", { type: "button" }, column.words, arrow);
    button.addEventListener("click", () => {
      sort.down = sorted ? !sort.down : index > 0 && !column.early;
      sort.key = column.key;
      changed();
      table.querySelector('th[data-key="' + column.key + '"] button').focus();
    });
    const order = sorted ? (sort.down ? "descending" : "ascending") : "none";
    row.append(make("th", { scope: "col", "aria-sort": order, "data-key": column.key, class: index ? "number" : "" }, button));
  }
  table.tHead.replaceChildren(row);
}

/** The first of some rows that are in order; the marked one is among them, wherever it stands. */
function fillRows(rows, all, most, marked, made) {
  const body = byId("table").tBodies[0];
  const focused = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const shown = rows.slice(0, most);
  const pinned = marked !== null && rows.slice(most).find((row) => row.key === marked);
  if (pinned) shown.unshift(pinned);
  body.replaceChildren(...shown.map(made));
  if (focused !== null) [...body.querySelectorAll(".pick")].find((button) => button.dataset.key === focused)?.focus();
  const left = Math.max(0, rows.length - most);
  byId("more").hidden = !left;
  byId("more").textContent = "Show more (" + grouped.format(left) + " left)";
  byId("rows").textContent = grouped.format(rows.length) + (rows.length < all ? " of " + grouped.format(all) : "") + " rows";
}

/** The first cell of a row: a square in the colour of its kind, its name as a button, its module's file, its source file and line. */
function nameCell(model, row, isMarked, picked) {
  const name = make("button", { type: "button", class: "pick", "data-key": row.key, "aria-pressed": String(isMarked) });
  name.append(nameOf(row.name, "name", row.module));
  name.addEventListener("click", picked);
  const head = make("th", { scope: "row" }, name);
  if (row.kind >= 0) head.prepend(make("span", { class: "dot kind-" + model.data.kinds[row.kind].name, "aria-hidden": "true" }));
  for (const [css, path] of [["module", row.module], ["module source", row.source]]) {
    if (path) head.append(make("bdi", { class: css, title: shortened(path, 300) }, path.slice(path.lastIndexOf("/") + 1)));
  }
  return head;
}

class Table {
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.sort = { key: "own", down: true };
    this.most = FIRST_ROWS;
  }

  get by() {
    return byId("by").value;
  }

  show(summary, found, marked) {
    Object.assign(this, { summary, found, marked });
    sortableHeads(COLUMNS, this.sort, () => this.show(this.summary, this.found, this.marked));
    this.fill();
  }

  fill() {
    const { key, down } = this.sort;
    const all = this.model.rows(this.summary, this.by);
    const rows = this.by === "function" && this.found ? all.filter((row) => this.found[row.key]) : all;
    const order = (one, other) => (key === "name" ? (one.name < other.name ? -1 : one.name > other.name ? 1 : 0) : one[key] - other[key]);
    rows.sort((one, other) => (down ? -1 : 1) * order(one, other) || other.total - one.total || one.key - other.key);
    fillRows(rows, all.length, this.most, this.by === "function" ? this.marked : null, (row) => this.row(row));
    this.neighbours();
  }

  row(row) {
    const isMarked = this.by === "function" && row.key === this.marked;
    return make(
      "tr",
      { class: isMarked ? "marked" : "" },
      nameCell(this.model, row, isMarked, () => this.actions.pick(this.by, row)),
      this.figure(row.own, this.summary.weight),
      this.figure(row.total, this.summary.weight),
      make("td", {}, make("data", { value: row.samples }, grouped.format(row.samples))),
      make("td", { "data-first": row.first }, moment(row.first)),
    );
  }

  /** A time with its share, and a bar as long as that. */
  figure(ns, whole) {
    const share = whole ? ns / whole : 0;
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = (100 * share).toFixed(2) + "%";
    return make("td", {}, bar, make("span", { class: "share" }, percent(share)), " ", make("data", { value: ns }, duration(ns)));
  }

  /** Who calls the marked function, and what it calls. */
  neighbours() {
    const box = byId("neighbours");
    const code = this.marked;
    box.hidden = code === null || code === undefined;
    if (box.hidden) return;
    const { nodes, functions } = this.model.data;
    const { all, own } = this.summary;
    const [callers, callees, counted] = [new Map(), new Map(), new Map()];
    let [total, self] = [0, 0];
    const add = (map, key, weight) => weight && map.set(key, (map.get(key) || 0) + weight);
    for (let node = 1; node < nodes.depth.length; node++) {
      if (nodes.function[node] !== code) continue;
      self += own.weight[node];
      if (this.model.outermost[node]) {
        total += all.weight[node];
        add(callers, nodes.function[nodes.parent[node]], all.weight[node]);
      }
      for (let child = node + 1; child < nodes.end[node]; child = nodes.end[child]) {
        const callee = nodes.function[child];
        if (child < (counted.get(callee) || 0)) continue; // within a call of it that was counted
        counted.set(callee, nodes.end[child]);
        add(callees, callee, all.weight[child]);
      }
    }
    if (self) callees.set(-1, self);
    const list = (words, found) => {
      const rows = [...found].sort((one, other) => other[1] - one[1]).slice(0, 12);
      const items = rows.map(([other, weight]) => {
        const label = other < 0 ? "in itself" : nameOf(functions.name[other]);
        const picked = make(other > 0 ? "button" : "span", other > 0 ? { type: "button", class: "pick" } : {}, label);
        if (other > 0) picked.addEventListener("click", () => this.actions.pick("function", { key: other }));
        return make("li", {}, make("span", { class: "share" }, percent(total ? weight / total : 0)), " ", picked);
      });
      return make("div", {}, make("h3", {}, words), make("ol", {}, ...(items.length ? items : [make("li", {}, "none")])));
    };
    box.replaceChildren(
      make("h2", {}, "Around ", nameOf(functions.name[code]), ": ", duration(total)),
      make("div", { class: "pair" }, list("Called by", callers), list("Calls", callees)),
    );
  }
}
