// The table of what took the time, and who calls and is called by the function that is marked in it.

const FIRST_ROWS = 100;

const COLUMNS = [
  { key: "name", words: "Name", text: true },
  { key: "own", words: "Self", share: true },
  { key: "total", words: "Total", share: true },
  { key: "samples", words: "Samples" },
];

class Table {
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
    this.sort = { key: "own", down: true };
    this.most = FIRST_ROWS;
    byId("by").addEventListener("change", () => this.fill());
    byId("more").addEventListener("click", () => {
      this.most *= 5;
      this.fill();
    });
    this.heads();
  }

  get by() {
    return byId("by").value;
  }

  heads() {
    const row = make("tr");
    for (const column of COLUMNS) {
      const sorted = column.key === this.sort.key;
      const button = make("button", { type: "button" }, column.words, make("span", { "aria-hidden": "true" }, sorted ? (this.sort.down ? " ▾" : " ▴") : ""));
      button.addEventListener("click", () => {
        this.sort = { key: column.key, down: sorted ? !this.sort.down : !column.text };
        this.heads();
        this.fill();
        byId("table").querySelector('th[data-key="' + column.key + '"] button').focus();
      });
      const order = sorted ? (this.sort.down ? "descending" : "ascending") : "none";
      row.append(make("th", { scope: "col", "aria-sort": order, "data-key": column.key, class: column.text ? "" : "number" }, button));
    }
    byId("table").tHead.replaceChildren(row);
  }

  show(summary, found, marked) {
    Object.assign(this, { summary, found, marked });
    this.fill();
  }

  fill() {
    const { summary } = this;
    if (!summary) return;
    const { key, down } = this.sort;
    let rows = this.model.rows(summary, this.by);
    const all = rows.length;
    if (this.by === "function" && this.found) rows = rows.filter((row) => this.found[row.key]);
    const order = (one, other) => (key === "name" ? (one.name < other.name ? -1 : one.name > other.name ? 1 : 0) : one[key] - other[key]);
    rows.sort((one, other) => (down ? -1 : 1) * order(one, other) || other.total - one.total || one.key - other.key);
    const shown = rows.slice(0, this.most);
    const pinned = this.by === "function" && rows.slice(this.most).find((row) => row.key === this.marked);
    if (pinned) shown.unshift(pinned);
    byId("table").tBodies[0].replaceChildren(...shown.map((row) => this.row(row)));
    const left = rows.length - Math.min(rows.length, this.most);
    byId("more").hidden = !left;
    byId("more").textContent = "Show more (" + grouped.format(left) + " left)";
    byId("rows").textContent = grouped.format(rows.length) + (rows.length < all ? " of " + grouped.format(all) : "") + " rows";
    this.neighbours();
  }

  row(row) {
    const { kinds } = this.model.data;
    const name = make("button", { type: "button", class: "pick" }, nameOf(row.name));
    name.addEventListener("click", () => this.actions.pick(this.by, row.key));
    const head = make("th", { scope: "row" }, name);
    if (row.kind >= 0) head.prepend(make("span", { class: "dot kind-" + kinds[row.kind].name, "aria-hidden": "true" }));
    if (row.module) {
      const file = make("bdi", { class: "module", title: shortened(row.module, 300) }, row.module.slice(row.module.lastIndexOf("/") + 1));
      head.append(file);
    }
    const isMarked = this.by === "function" && row.key === this.marked;
    name.setAttribute("aria-pressed", String(isMarked));
    return make(
      "tr",
      { class: isMarked ? "marked" : "" },
      head,
      this.figure(row.own, this.summary.weight),
      this.figure(row.total, this.summary.weight),
      make("td", {}, make("data", { value: row.samples }, grouped.format(row.samples))),
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
        if (other > 0) picked.addEventListener("click", () => this.actions.pick("function", other));
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
