// Phases of boots that are compared: how long they took, what differs in each, what one side alone runs.

const PHASE_PARTS = { self: "by themselves", total: "with what they call" };

class Phases {
  /** actions: choose(spans) selects the range of each run, mark(code) shows a function in the graph. */
  constructor(boots, actions) {
    this.boots = boots;
    this.actions = actions;
  }

  /** All there is, as elements; nothing of it follows what is selected. */
  parts() {
    const { names, phases, only, unmatched } = this.boots;
    const heads = ["Phase", "A: " + names[0], "B: " + names[1], "B − A", "What it is worth", "Idle in A", "Idle in B"];
    const parts = [plainTable("Phases of the boot, on average", heads, phases.map((phase) => this.phase(phase)))];
    if (unmatched.length) parts.push(make("ul", {}, ...unmatched.map((words) => make("li", {}, isolated(words)))));
    for (const phase of phases) {
      for (const [part, words] of Object.entries(PHASE_PARTS)) {
        const rows = (phase.functions || []).filter((row) => row.part === part);
        if (!rows.length) continue;
        const caption = phase.name + ": functions that differ " + words;
        parts.push(plainTable(caption, ["Function", "Module", "A", "B", "B − A", "What it is worth"], rows.map((row) => this.row(row))));
      }
    }
    for (const [side, rows] of only.entries()) {
      if (!rows.length) continue;
      const caption = "Only " + names[side] + " runs these; " + names[1 - side] + " was never seen to";
      const missing = (row) => (row.missing ? "no such function in " + names[1 - side] : "");
      const cells = (row) => [this.name(row), isolated(row.module), row.time, grouped.format(row.samples), missing(row)];
      parts.push(plainTable(caption, ["Function", "Module", "Self time", "Samples", "Note"], rows.map(cells)));
    }
    return parts;
  }

  phase(phase) {
    const { before, after, worth } = phase;
    const [idleBefore, idleAfter] = phase.idle || ["", ""];
    return [this.choice(phase), before, after, changeCell(phase), WORTHS[worth] || worth, idleBefore, idleAfter];
  }

  /** The name, as a button that selects the phase. */
  choice(phase) {
    if (!phase.spans) return isolated(phase.name);
    const words = "Show the flame graph of this phase" + (phase.title ? ": " + phase.title : "");
    const button = make("button", { type: "button", title: words }, isolated(phase.name));
    button.addEventListener("click", () => this.actions.choose(phase.spans));
    return button;
  }

  row(row) {
    return [this.name(row), isolated(row.module), row.before, row.after, changeCell(row), WORTHS[row.worth] || row.worth];
  }

  name(row) {
    if (row.code === null) return nameOf(row.name);
    const button = make("button", { type: "button", title: "Mark it in the flame graph" }, nameOf(row.name));
    button.addEventListener("click", () => this.actions.mark(row.code));
    return button;
  }
}

function changeCell(row) {
  return make("span", { class: "change " + (row.more > 0 ? "more" : row.more < 0 ? "less" : "") }, row.change);
}
