// What is chosen on the page, and what follows from it.

class Page {
  constructor(data) {
    this.data = data;
    this.model = new Model(data);
    this.paint = new Paint(data);
    this.run = 0;
    this.ranges = data.runs.map(() => null);
    this.marked = null;
    this.tab = "graph";
    const mark = (box) => this.mark(box.code);
    const choose = (range) => this.choose(range);
    this.graph = new Graph(this.model, this.paint, {
      tell: (box, aloud) => this.tell(box, aloud),
      words: (box) => this.words(box),
      mark,
    });
    this.table = new Table(this.model, { pick: (by, key) => this.pick(by, key) });
    this.overview = new Overview(this.model, this.paint, { choose });
    this.chart = new Chart(this.model, this.paint, { choose, mark });
    this.update = onceAFrame(() => this.render());
    this.fillFilters();
    this.listen();
    this.legend();
    this.showRun();
    this.render();
  }

  get range() {
    return this.ranges[this.run];
  }

  /** The filters as chosen; null for what is not filtered by. */
  filter() {
    const chosen = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
    return {
      vcpu: chosen("vcpu"),
      process: chosen("process"),
      context: chosen("context"),
      module: chosen("module"),
      idle: byId("idle").checked,
      onlyFound: byId("only").checked,
    };
  }

  fillFilters() {
    const { data } = this;
    const fill = (id, rows) => {
      const all = make("option", { value: "" }, "all");
      const byName = (one, other) => (one[1] < other[1] ? -1 : one[1] > other[1] ? 1 : one[0] - other[0]);
      byId(id).replaceChildren(all, ...rows.sort(byName).map(([key, words]) => make("option", { value: key }, shortened(words, 60))));
      byId(id).parentElement.hidden = rows.length < 2;
    };
    const vcpus = new Set(data.runs.flatMap((run) => run.vcpus.map((track) => track.vcpu)));
    fill("vcpu", [...vcpus].map((vcpu) => [vcpu, String(vcpu)]));
    fill("process", this.model.groups.map((name, key) => [key, name]));
    const contexts = new Set(data.origins.map((origin) => origin[2]));
    fill("context", [...contexts].map((key) => [key, data.contexts[key]]));
    fill("module", data.modules.map((name, key) => [key, name]).filter(([, name]) => name));
  }

  legend() {
    const used = new Set(this.data.functions.kind);
    const items = this.data.kinds
      .filter((kind, index) => used.has(index))
      .map((kind) => make("li", {}, make("span", { class: "dot kind-" + kind.name, "aria-hidden": "true" }), kind.words));
    byId("legend").replaceChildren(...items);
  }

  showRun() {
    const run = this.data.runs[this.run];
    byId("title").replaceChildren(make("bdi", {}, run.title));
    byId("subtitle").textContent = run.quality.map(([words, text]) => words.toLowerCase() + " " + text).slice(0, 3).join(" · ");
    byId("about").replaceChildren(...aboutRun(run, this.data.version, (range) => this.choose(range)));
  }

  render() {
    const run = this.data.runs[this.run];
    const filter = this.filter();
    const words = byId("search").value;
    const found = (this.found = this.model.found(words));
    const summary = (this.summary = this.model.summary(run, this.range, filter, found, words));
    byId("matched").textContent = found ? percent(this.model.foundShare(summary, found)) + " of the time matches" : "";
    this.tellSelection(run, summary);
    this.overview.show(run, summary.passes, this.range);
    if (this.tab === "graph") {
      this.showGraph();
      this.table.show(summary, found, this.marked);
    } else if (this.tab === "chart") this.chart.show(run, summary.passes, this.range, found);
  }

  showGraph() {
    const inverted = byId("direction").value === "up";
    if (this.inverted !== inverted) this.graph.zoom = [];
    this.inverted = inverted;
    const tree = new Tree(this.model, this.summary, null, inverted);
    this.graph.show(tree, { found: this.found, marked: this.marked, rooted: byId("layout").value, difference: null });
    byId("empty").hidden = Boolean(this.summary.whole);
  }

  tellSelection(run, summary) {
    const part = run.weight ? summary.weight / run.weight : 1;
    const words = [counted(summary.samples, "sample"), duration(summary.weight) + " of vCPU time"];
    if (part < 1) words.push(percent(part) + " of all");
    byId("selected").textContent = words.join(", ");
    byId("selected").dataset.weight = summary.weight;
    byId("selected").dataset.samples = summary.samples;
    const [from, until] = this.range || ["", ""];
    const put = (id, value) => {
      if (document.activeElement !== byId(id)) byId(id).value = value === "" ? "" : Number((value / 1e9).toFixed(6));
    };
    put("from", from);
    put("until", until);
    byId("wholetime").disabled = !this.range;
    const option = (name, value) => " --" + name + " " + Number((value / 1e9).toFixed(9));
    byId("same").textContent = this.range ? "guestprof report FILE" + option("since", from) + option("until", until) : "";
  }

  /** Selects a range of time, which all views follow; null for all. */
  choose(range) {
    this.ranges[this.run] = range && range[1] > range[0] ? range.map(Math.round) : null;
    this.overview.mark(this.range);
    this.update();
  }

  mark(code) {
    this.marked = code;
    this.update();
  }

  /** A row of the table: a function is marked in the graph, others become filters. */
  pick(by, key) {
    const filters = { process: "process", module: "module", context: "context", vCPU: "vcpu" };
    if (by === "function") this.mark(this.marked === key ? null : key);
    else if (filters[by]) {
      const box = byId(filters[by]);
      const value = String(by === "process" ? this.model.groupOf[key] : key);
      box.value = box.value === value ? "" : value;
      this.update();
    }
  }

  /** What is told of a box: its name, its module, its figures. */
  words(box) {
    const { functions, modules, kinds } = this.data;
    const module = modules[functions.module[box.code]];
    const { summary } = this;
    const figures = [percent(summary.whole ? box.value / summary.whole : 0) + " of what is selected"];
    if (box.parent?.value) figures.push(percent(box.value / box.parent.value) + " of the box before");
    figures.push(duration(box.weight), counted(box.samples, "sample"));
    if (!this.inverted) figures.push(duration(box.own) + " in itself");
    const kind = box.level ? kinds[box.kind].words : "";
    return [functions.name[box.code], [module, kind].filter(Boolean).join(" · "), figures.join(", ")].filter(Boolean);
  }

  tell(box, aloud) {
    if (!box) return;
    const [name, ...more] = this.words(box);
    byId("details").replaceChildren(nameOf(name, "strong"), ...more.flatMap((text) => [make("span", {}, " "), isolated(text)]));
    if (aloud) announce([name.length > 200 ? shortened(name, 200) : name, ...more, "level " + box.level].join(", "));
  }

  openTab(name) {
    this.tab = name;
    for (const tab of document.querySelectorAll('[role="tab"]')) {
      const chosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !chosen;
    }
    this.render();
  }

  clear() {
    for (const id of ["search", "vcpu", "process", "context", "module"]) byId(id).value = "";
    byId("idle").checked = true;
    byId("only").checked = false;
    this.graph.zoom = [];
    this.marked = null;
    this.choose(null);
  }

  listen() {
    byId("search").addEventListener("input", this.update);
    for (const id of ["vcpu", "process", "context", "module", "idle", "only", "direction", "layout"]) {
      byId(id).addEventListener("change", this.update);
    }
    for (const id of ["from", "until"]) byId(id).addEventListener("input", () => this.typedRange());
    byId("wholetime").addEventListener("click", () => this.choose(null));
    byId("clear").addEventListener("click", () => this.clear());
    byId("unzoom").addEventListener("click", () => this.graph.reset());
    const tabs = [...document.querySelectorAll('[role="tab"]')];
    for (const [index, tab] of tabs.entries()) {
      tab.addEventListener("click", () => this.openTab(tab.dataset.tab));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(index + step + tabs.length) % tabs.length];
        next.focus();
        this.openTab(next.dataset.tab);
      });
    }
    byId("theme").addEventListener("change", () => {
      document.documentElement.dataset.theme = byId("theme").value;
      this.repaint();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    addEventListener("resize", this.update);
    document.addEventListener("keydown", (event) => this.key(event));
  }

  repaint() {
    this.paint.refresh();
    this.overview.picture = null;
    this.render();
  }

  typedRange() {
    const [first, last] = wholeSpan(this.data.runs[this.run]);
    const read = (id, otherwise) => (byId(id).value === "" ? otherwise : Number(byId(id).value) * 1e9);
    const range = [read("from", first), read("until", last + 1)];
    this.choose(byId("from").value === "" && byId("until").value === "" ? null : range);
  }

  key(event) {
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("search").focus();
      byId("search").select();
    } else if (event.key === "Escape") {
      if (this.graph.zoom.length) this.graph.reset();
      else {
        byId("search").value = "";
        this.update();
      }
    }
  }
}

unpack(byId("data").textContent).then(
  (data) => {
    byId("page").hidden = false;
    new Page(data);
    document.documentElement.dataset.ready = "yes";
  },
  (error) => {
    byId("failure").hidden = false;
    byId("failure").textContent = "This page's data cannot be read (" + error.message + "). A browser of 2023 or later is needed; if it is one, the file is damaged.";
  },
);
