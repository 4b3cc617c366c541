// How far a run can be trusted, what happened in it, and everything else that is known of it.

/** A table with a caption; rows are lists of texts or elements. */
function plainTable(caption, heads, rows) {
  const head = make("thead", {}, make("tr", {}, ...heads.map((words) => make(words ? "th" : "td", words ? { scope: "col" } : {}, words))));
  const cellOf = (cell) => make("td", { class: cell.length < 24 ? "short" : "" }, cell);
  const body = rows.map(([first, ...rest]) => make("tr", {}, make("th", { scope: "row" }, first), ...rest.map(cellOf)));
  return make("table", { class: "plain" }, make("caption", {}, caption), head, make("tbody", {}, ...body));
}

function isolated(text) {
  return make("bdi", {}, text);
}

/** The parts of the page's last tab. */
function aboutRun(run, version) {
  const parts = [];
  if (run.selection.length) {
    const words = "The file was made of a part of the recording: " + run.selection.join("; ") + ".";
    parts.push(make("p", { class: "notice" }, words));
  }
  parts.push(plainTable("How far to trust it", ["What", "How"], run.quality));
  const count = (row) => grouped.format(row.samples);
  if (run.ends.length) {
    const rows = run.ends.map((row) => [row.name, count(row), percent(row.share), row.meaning]);
    parts.push(plainTable("Why kernel stacks end", ["End", "Samples", "Share", "Meaning"], rows));
  }
  if (run.userEnds.length) {
    const rows = run.userEnds.map((row) => [row.name, count(row), row.meaning]);
    parts.push(plainTable("Why user stacks end", ["End", "Samples", "Meaning"], rows));
  }
  if (run.notes.length) {
    parts.push(make("h2", {}, "What stays unknown"), make("ul", {}, ...run.notes.map((note) => make("li", {}, isolated(note)))));
  }
  const byGuest = run.clocks.length ? ["Guest's clock"] : [];
  const when = (time) => [moment(time), ...byGuest.map(() => guestMoment(run, time))];
  if (run.events.length) {
    const rows = run.events.map((event) => [isolated(event.name), ...when(event.time), isolated(event.text)]);
    parts.push(plainTable("What happened while recording", ["Event", "At", ...byGuest, "What"], rows));
  }
  if (run.console.length) {
    const rows = run.console.map((line) => [...when(line.time), make("bdi", { class: "name" }, line.text)]);
    const summary = make("summary", {}, counted(rows.length, "line") + " of the console");
    parts.push(make("details", {}, summary, plainTable("Console", ["At", ...byGuest, "Line"], rows)));
  }
  const facts = [...run.facts, ["Page written by", "guestprof " + version]];
  parts.push(plainTable("The run", ["What", "Value"], facts.map(([words, value]) => [words, isolated(value)])));
  return parts;
}
