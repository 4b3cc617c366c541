// What is chosen on the page, and what follows from it.

class Page {
  constructor(data) {
    this.data = data;
    this.model = new Model(data);
    this.paint = new Paint(data);
    /** Of each side, the places of its runs; one side where nothing is compared. */
    this.sides = data.comparison.sides || [[0]];
    this.letters = lettersOf(this.sides);
    this.ranges = data.runs.map(() => null);
    this.marked = null;
    this.tab = "graph";
    const mark = (box) => this.mark(box.code);
    const pick = (by, row) => this.pick(by, row);
    this.graph = new Graph(this.model, this.paint, {
      tell: (box, aloud) => this.tell(box, aloud),
      words: (box) => this.words(box),
      mark,
    });
    this.table = new Table(this.model, { pick });
    this.differences = new Differences(this.model, { pick });
    this.overviews = data.runs.map((run, index) => {
      const words = data.runs.length > 1 ? this.letters[index] + ": " : "";
      return new Overview(this.model, this.paint, words, { choose: (range) => this.choose(range, index) });
    });
    byId("overviews").replaceChildren(...this.overviews.map((overview) => overview.canvas));
    for (const [index, overview] of this.overviews.entries()) overview.canvas.id = "overview-" + index;
    this.chart = new Chart(this.model, this.paint, { choose: (range) => this.choose(range), mark });
    this.boot = new Boot(this.model, { choose: (range) => this.choose(range), mark });
    this.offerPhases();
    this.update = onceAFrame(() => this.render());
    this.fillFilters();
    this.offerRuns();
    this.listen();
    this.show(data.runs.length > 1 ? null : 0);
  }

  /** The runs that are shown: one, or both where they are compared. */
  get shown() {
    return this.run === null ? this.data.runs : [this.data.runs[this.run]];
  }

  get range() {
    return this.ranges[this.run ?? 0];
  }

  /** Which of several runs is shown, or their difference. */
  offerRuns() {
    const { runs } = this.data;
    if (runs.length < 2) return;
    const choices = [[null, "Difference", "Difference between A and B"]];
    for (const [index, run] of runs.entries()) choices.push([index, this.letters[index], this.letters[index] + ": " + run.title]);
    const buttons = choices.map(([run, words, all]) => {
      const button = make("button", { type: "button", role: "radio", "aria-label": all, title: all }, words);
      button.addEventListener("click", () => this.show(run));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const next = buttons[(buttons.indexOf(button) + step + buttons.length) % buttons.length];
        next.focus();
        next.click();
      });
      return button;
    });
    byId("runs").replaceChildren(...buttons);
    byId("runs").hidden = false;
  }

  /** The phases of boots that are compared. */
  offerPhases() {
    const { boots } = this.data.comparison;
    if (!boots) return;
    const choose = (spans) => {
      for (const [index, span] of spans.entries()) this.choose(span, index);
      this.openTab("graph");
    };
    const show = (code) => {
      this.openTab("graph");
      this.mark(code);
    };
    byId("phases").replaceChildren(...new Phases(boots, { choose, mark: show }).parts());
    byId("tab-phases").hidden = false;
  }

  /** Shows a run, or the difference (null). */
  show(run) {
    this.run = run;
    const { runs } = this.data;
    document.documentElement.dataset.view = run === null ? "difference" : "single";
    for (const [index, button] of [...byId("runs").children].entries()) {
      const chosen = index === (run === null ? 0 : run + 1);
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
    for (const [index, overview] of this.overviews.entries()) overview.canvas.hidden = run !== null && run !== index;
    byId("title").replaceChildren(...(run === null ? this.titleOfBoth() : [isolated(runs[run].title)]));
    const quality = (words) => words.quality.map(([what, text]) => what.toLowerCase() + " " + text).slice(0, 3).join(" · ");
    byId("subtitle").textContent = run === null ? this.data.comparison.words : quality(runs[run]);
    const parts = run === null ? aboutComparison(this.data, this.letters) : aboutRun(runs[run], this.data.version);
    byId("about").replaceChildren(...parts);
    this.legend();
    if (byId("tab-" + this.tab).classList.contains(run === null ? "single" : "paired")) this.tab = "graph";
    this.openTab(this.tab);
  }

  titleOfBoth() {
    const [first, second] = this.sides.map((side) => isolated(this.data.runs[side[0]].title));
    return ["A: ", first, " → B: ", second];
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
    const square = (css, words) => make("li", {}, make("span", { class: "dot " + css, "aria-hidden": "true" }), words);
    const used = new Set(this.data.functions.kind);
    const kinds = this.data.kinds.filter((_, index) => used.has(index)).map((kind) => square("kind-" + kind.name, kind.words));
    const changes = [square("less", "less in B"), square("equal", "equal, or within the sampling error"), square("more", "more in B")];
    byId("legend").replaceChildren(...(this.run === null ? changes : kinds));
  }

  render() {
    const filter = this.filter();
    const words = byId("search").value;
    const found = (this.found = this.model.found(words));
    const partOf = (index) => ({ run: this.data.runs[index], range: this.ranges[index] });
    const sides = this.run === null ? this.sides : [[this.run]];
    const summaries = sides.map((side) => this.model.summary(side.map(partOf), filter, found, words));
    this.summaries = summaries;
    const matches = summaries.map((summary) => found && percent(this.model.foundShare(summary, found)));
    byId("matched").textContent = found ? matches.join(" and ") + " of the time matches" : "";
    this.tellSelection();
    for (const [index, run] of this.data.runs.entries()) {
      if (this.shown.includes(run)) this.overviews[index].show(run, summaries[0].passes, this.ranges[index]);
    }
    if (this.tab === "graph") this.showGraph();
    else if (this.tab === "chart") this.chart.show(this.shown[0], summaries[0].passes, this.range, found);
    else if (this.tab === "boot") this.boot.show(this.shown[0], this.range);
  }

  showGraph() {
    const { summaries, found, marked } = this;
    const inverted = byId("direction").value === "up";
    if (this.inverted !== inverted) this.graph.zoom = [];
    this.inverted = inverted;
    const side = this.run === null ? Number(byId("widths").value) : 0;
    this.widths = summaries[side];
    const tree = new Tree(this.model, this.widths, summaries[1 - side] || null, inverted);
    this.compared = this.run === null ? new Compared(this.data, summaries, this.isWhole(), byId("measure").value) : null;
    const difference = this.compared && ((box) => this.compared.change(box, side));
    this.graph.show(tree, { found, marked, rooted: byId("layout").value, difference });
    byId("empty").hidden = Boolean(this.widths.whole);
    if (this.run === null) this.differences.show(this.compared, found, marked);
    else this.table.show(summaries[0], found, marked);
  }

  /** Whether nothing is filtered out, so that what was found of the whole recordings is true of what is shown. */
  isWhole() {
    const filter = this.filter();
    const filtered = ["vcpu", "process", "context", "module"].some((name) => filter[name] !== null) || filter.onlyFound || !filter.idle;
    return !filtered && this.ranges.every((range) => range === null);
  }

  tellSelection() {
    const told = this.summaries.map((summary, index) => {
      const whole = summary.recorded;
      const words = [counted(summary.samples, "sample"), duration(summary.weight) + " of vCPU time"];
      if (whole && summary.weight < whole) words.push(percent(summary.weight / whole) + " of all");
      return (this.run === null ? "AB"[index] + ": " : "") + words.join(", ");
    });
    byId("selected").textContent = told.join(" · ");
    byId("selected").dataset.weight = this.summaries.map((summary) => summary.weight).join(" ");
    byId("selected").dataset.samples = this.summaries.map((summary) => summary.samples).join(" ");
    const [from, until] = this.range || ["", ""];
    const typing = document.activeElement === byId("from") || document.activeElement === byId("until");
    const put = (id, value) => {
      if (!typing) byId(id).value = value === "" ? "" : Number((value / 1e9).toFixed(6));
    };
    put("from", from);
    put("until", until);
    byId("wholetime").disabled = this.shown.every((run) => !this.ranges[this.data.runs.indexOf(run)]);
    const option = (name, value) => " --" + name + " " + Number((value / 1e9).toFixed(9));
    const isOfOne = this.range && this.run !== null;
    byId("same").textContent = isOfOne ? "guestprof report FILE" + option("since", from) + option("until", until) : "";
  }

  /** Selects a range of time, which all views follow; null for all. */
  choose(range, run = this.run) {
    this.ranges[run] = range && range[1] > range[0] ? range.map(Math.round) : null;
    this.overviews[run].mark(this.ranges[run]);
    this.update();
  }

  /** No range any more in what is shown. */
  chooseAll() {
    for (const run of this.shown) this.ranges[this.data.runs.indexOf(run)] = null;
    this.update();
  }

  mark(code) {
    this.marked = code;
    this.update();
  }

  /** A row of the table: a function is marked in the graph, others become filters. */
  pick(by, row) {
    const filters = { process: "process", module: "module", context: "context", vCPU: "vcpu" };
    if (by === "function") this.mark(this.marked === row.key ? null : row.key);
    else if (filters[by]) {
      const box = byId(filters[by]);
      const value = String(by === "process" ? this.model.groups.indexOf(row.group) : row.key);
      box.value = box.value === value ? "" : value;
      this.update();
    }
  }

  /** What is told of a box: its name, its module, its figures. */
  words(box) {
    const { functions, modules, kinds } = this.data;
    const source = sourceOf(functions, box.code);
    const module = modules[functions.module[box.code]];
    const where = [module, source];
    const told = (...figures) => [functions.name[box.code], where.filter(Boolean).join(" · "), ...figures].filter(Boolean);
    if (this.compared) return told(...this.compared.words(box, this.widths));
    const whole = this.widths.whole;
    const figures = [percent(whole ? box.value / whole : 0) + " of what is selected"];
    if (box.parent?.value) figures.push(percent(box.value / box.parent.value) + " of the box before");
    figures.push(duration(box.weight), counted(box.samples, "sample"));
    if (!this.inverted) figures.push(duration(box.own) + " in itself");
    if (box.level) where.push(kinds[box.kind].words);
    return told(figures.join(", "));
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
    this.chooseAll();
  }

  listen() {
    byId("search").addEventListener("input", this.update);
    for (const id of ["vcpu", "process", "context", "module", "idle", "only", "direction", "layout", "widths", "measure", "part", "by"]) {
      byId(id).addEventListener("change", this.update);
    }
    for (const id of ["from", "until"]) byId(id).addEventListener("input", () => this.typedRange());
    byId("wholetime").addEventListener("click", () => this.chooseAll());
    byId("clear").addEventListener("click", () => this.clear());
    byId("more").addEventListener("click", () => {
      (this.run === null ? this.differences : this.table).most *= 5;
      this.update();
    });
    byId("unzoom").addEventListener("click", () => this.graph.reset());
    const every = [...document.querySelectorAll('[role="tab"]')];
    for (const tab of every) {
      tab.addEventListener("click", () => this.openTab(tab.dataset.tab));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const tabs = every.filter((other) => other.offsetParent);
        const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
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
    for (const overview of this.overviews) overview.picture = null;
    this.render();
  }

  typedRange() {
    const [first, last] = wholeSpan(this.shown[0]);
    const read = (id, otherwise) => (byId(id).value === "" ? otherwise : Number(byId(id).value) * 1e9);
    const range = [read("from", first), read("until", last + 1)];
    const isRange = range[1] > range[0];
    byId("until").setAttribute("aria-invalid", String(!isRange));
    if (isRange) this.choose(byId("from").value === "" && byId("until").value === "" ? null : range);
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

/** What runs are called: A and B, or A1, A2 ... where a side has several. */
function lettersOf(sides) {
  return sides.flatMap((side, index) => side.map((_, place) => "AB"[index] + (side.length > 1 ? place + 1 : "")));
}

unpack(byId("data").textContent).then(
  (data) => {
    byId("page").hidden = false;
    new Page(data);
    document.documentElement.dataset.ready = "yes";
  },
  (error) => {
    byId("failure").hidden = false;
    byId("failure").textContent =
      "This page's data cannot be read (" + error.message + "). A browser of 2023 or later is needed; if it is one, the file is damaged.";
  },
);
