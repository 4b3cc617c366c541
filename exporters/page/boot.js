// Milestones divide the time into phases; halts in which every vCPU that was started was idle are waits, which something ended.
// What counts is as in recording/phases.py and recording/waits.py.

/** The phases of a run within a range, from the first to the last with samples: {name, text, from, until}, with their sums. */
function phasesOf(model, run, range) {
  const [first, last] = range || [0, Infinity];
  const whole = wholeSpan(run);
  const starts = [{ name: "start", text: "", time: -1 }, ...run.milestones.filter((mark) => mark.phase)];
  const phases = starts.map((mark, index) => {
    const next = index + 1 < starts.length ? starts[index + 1].time : whole[1] + 1;
    const phase = { name: mark.name, text: mark.text, from: Math.max(first, mark.time), until: Math.min(last, next) };
    return { ...phase, sums: sumsOf(model, run, phase) };
  });
  while (phases.length && !phases[0].sums.samples) phases.shift();
  while (phases.length && !phases[phases.length - 1].sums.samples) phases.pop();
  // What the first sample stands for began before it was taken.
  if (phases.length) phases[0].from = Math.max(first, Math.min(phases[0].from, whole[0]));
  return phases;
}

/** The halts of a run in a range, in time order: the samples of each as {track, index, stack, weight}. */
function* haltsOf(model, run, range) {
  const places = run.vcpus.map((track) => {
    const [at, end] = model.within(track, range);
    return { track, at, end };
  });
  for (;;) {
    let now = Infinity;
    for (const place of places) if (place.at < place.end) now = Math.min(now, place.track.time[place.at]);
    if (now === Infinity) return;
    const samples = [];
    for (const place of places) {
      const { track, at } = place;
      if (at >= place.end || track.time[at] !== now) continue;
      samples.push({ track, index: at, stack: track.stack[at], weight: track.weight[at] });
      place.at++;
    }
    yield { now, samples };
  }
}

/** Marks the samples of vCPUs that nobody had started yet: they stood in firmware while another one ran the kernel. */
function markParked(model, run) {
  if (run.vcpus.every((track) => track.parked)) return;
  const { stacks, origins } = model.data;
  for (const track of run.vcpus) track.parked = new Uint8Array(track.time.length);
  const [boots, started] = [new Set(), new Set()];
  for (const { samples } of haltsOf(model, run, null)) {
    for (const { track, index, stack } of samples) {
      const boot = stacks.boot[stack];
      const key = boot + " " + track.vcpu;
      if (!origins[stacks.origin[stack]][4]) {
        boots.add(boot);
        started.add(key);
      } else if (boots.has(boot) && !started.has(key)) track.parked[index] = 1;
    }
  }
}

/** What was sampled within a phase: time by what the vCPUs did, and the functions that took most by themselves. */
function sumsOf(model, run, phase) {
  const { stacks, origins, contexts, nodes } = model.data;
  const sums = { idle: 0, user: 0, kernel: 0, firmware: 0, all: 0, samples: 0 };
  const own = new Map();
  for (const track of run.vcpus) {
    const [first, last] = model.within(track, [phase.from, phase.until]);
    for (let index = first; index < last; index++) {
      if (track.parked[index]) continue;
      const stack = track.stack[index];
      const weight = track.weight[index];
      const context = contexts[origins[stacks.origin[stack]][2]];
      sums[stacks.idle[stack] ? "idle" : context === "user" || context === "firmware" ? context : "kernel"] += weight;
      sums.all += weight;
      sums.samples += track.samples[index];
      if (stacks.idle[stack]) continue;
      const code = nodes.function[stacks.node[stack]];
      own.set(code, (own.get(code) || 0) + weight);
    }
  }
  const top = [...own].sort((one, other) => other[1] - one[1] || one[0] - other[0]).slice(0, 3);
  return { ...sums, top };
}

/** Spans in which nothing ran: {from, until, by: the stack that ended it, or null at the end}. As recording/waits.py tells them. */
function waitsOf(model, run, range) {
  const { stacks, origins, threads } = model.data;
  const waits = [];
  let [from, until, before] = [null, 0, null];
  const hasTask = (sample) => threads[origins[stacks.origin[sample.stack]][1]].pid !== null;
  for (const halt of haltsOf(model, run, range)) {
    const samples = halt.samples.filter(({ track, index }) => !track.parked[index]);
    if (!samples.length) continue;
    const busy = samples.filter((sample) => !stacks.idle[sample.stack]);
    if (!busy.length) {
      if (from === null) from = before === null ? halt.now - Math.max(...samples.map((sample) => sample.weight)) : before;
      until = halt.now;
    } else if (from !== null) {
      waits.push({ from, until, by: (busy.find(hasTask) || busy[0]).stack });
      from = null;
    }
    before = halt.now;
  }
  if (from !== null) waits.push({ from, until, by: null });
  return waits;
}

/** Waits by what ended them, those that took longest altogether first. */
function waitTotals(model, waits) {
  const totals = new Map();
  for (const wait of waits) {
    if (wait.by === null) continue;
    const waker = model.data.stacks.waker[wait.by] - 1;
    if (!totals.has(waker)) totals.set(waker, { waker, total: 0, waits: 0, longest: wait });
    const row = totals.get(waker);
    row.total += wait.until - wait.from;
    row.waits++;
    if (wait.until - wait.from > row.longest.until - row.longest.from) row.longest = wait;
  }
  return [...totals.values()].sort((one, other) => other.total - one.total || one.waker - other.waker);
}

/** When code of each module was on a stack first, by the module's number. */
function firstByModule(model, run, range) {
  const { stacks, nodes, functions, modules } = model.data;
  const first = new Float64Array(modules.length).fill(Infinity);
  const seen = model.sums([{ run, range }], null).first;
  for (let stack = 0; stack < seen.length; stack++) {
    if (seen[stack] === Infinity) continue;
    for (let node = stacks.node[stack]; node > 0; node = nodes.parent[node]) {
      const module = functions.module[nodes.function[node]];
      first[module] = Math.min(first[module], seen[stack]);
    }
  }
  return first;
}

const MOST_WAITS = 50;

class Boot {
  constructor(model, actions) {
    this.model = model;
    this.actions = actions;
  }

  show(run, range) {
    const parts = [];
    markParked(this.model, run);
    if (run.milestones.length) parts.push(this.phases(run, range), this.milestones(run));
    else parts.push(make("p", { class: "dim" }, "No milestone of a boot is in this recording."));
    parts.push(...this.modules(run, range), ...this.waits(run, range));
    byId("boot").replaceChildren(...parts);
  }

  /** A button that selects a range of time. */
  select(words, from, until) {
    const button = make("button", { type: "button", "aria-label": "Select " + words }, "Select");
    button.addEventListener("click", () => this.actions.choose([from, until]));
    return button;
  }

  code(index) {
    const picked = make("button", { type: "button", class: "pick" }, nameOf(this.model.data.functions.name[index]));
    picked.addEventListener("click", () => this.actions.mark({ code: index }));
    return picked;
  }

  phases(run, range) {
    const rows = phasesOf(this.model, run, range).map((phase) => {
      const { sums } = phase;
      const until = Math.min(phase.until, wholeSpan(run)[1]);
      const top = sums.top.flatMap(([code, weight]) => [this.code(code), " " + percent(weight / sums.all) + " "]);
      const [began, ended] = [guestTime(run, phase.from), guestTime(run, until)];
      return [
        make("span", {}, isolated(phase.name), make("br"), make("span", { class: "dim" }, isolated(phase.text))),
        moment(phase.from),
        duration(until - phase.from),
        ...(run.clocks.length ? [began === null || ended === null ? "" : duration(ended - began)] : []),
        this.mix(sums),
        make("span", { class: "top" }, ...top),
        this.select("the phase " + phase.name, phase.from, phase.until),
      ];
    });
    const byGuest = run.clocks.length ? ["By the guest's clock"] : [];
    return plainTable("Phases", ["Phase", "From", "Lasts", ...byGuest, "vCPU time", "Most by themselves", ""], rows);
  }

  /** A bar of what the vCPUs did, and its figures. */
  mix(sums) {
    const kinds = ["kernel", "user", "firmware", "idle"].filter((kind) => sums[kind]);
    const bar = make("span", { class: "mix", "aria-hidden": "true" });
    for (const kind of kinds) {
      const part = make("span", { class: "kind-" + kind });
      part.style.width = (100 * sums[kind]) / sums.all + "%";
      bar.append(part);
    }
    const words = kinds.map((kind) => kind + " " + percent(sums[kind] / sums.all)).join(", ");
    return make("span", {}, bar, words || "no sample");
  }

  milestones(run) {
    const rows = run.milestones.map((mark) => {
      const next = run.milestones.find((other) => other.time > mark.time);
      const known = mark.after === null ? "" : "up to " + duration(mark.time - mark.after) + " earlier";
      const until = next ? next.time : wholeSpan(run)[1] + 1;
      const words = "the time from " + mark.name + " to " + (next ? next.name : "the end");
      const byGuest = run.clocks.length ? [guestMoment(run, mark.time)] : [];
      return [isolated(mark.name), moment(mark.time), ...byGuest, known, isolated(mark.text), this.select(words, mark.time, until)];
    });
    const byGuest = run.clocks.length ? ["Guest's clock"] : [];
    return plainTable("Milestones", ["Milestone", "First seen", ...byGuest, "True moment", "What", ""], rows);
  }

  /** Modules as they were found loaded, which is an event each: "ext4 at 0x...". */
  modules(run, range) {
    const [from, until] = range || [0, Infinity];
    const loads = run.events.filter(({ name, time }) => name === "module-loaded" && from <= time && time < until);
    if (!loads.length) return [];
    const byGuest = run.clocks.length ? ["Guest's clock"] : [];
    const first = firstByModule(this.model, run, range);
    const rows = loads.map(({ time, text }) => {
      const module = text.split(" at 0x")[0];
      const seen = first[this.model.data.modules.indexOf("[" + module + "]")] ?? Infinity;
      return [isolated(module), moment(time), ...byGuest.map(() => guestMoment(run, time)), seen < Infinity ? moment(seen) : "not seen"];
    });
    return [plainTable("Modules", ["Module", "Found loaded", ...byGuest, "First code seen"], rows)];
  }

  waits(run, range) {
    const head = make("h2", {}, "What was waited for");
    if (run.merged) return [head, make("p", { class: "dim" }, "Samples of this page are merged; guestprof timeline tells the waits.")];
    const waits = waitsOf(this.model, run, range);
    const total = waits.reduce((sum, wait) => sum + wait.until - wait.from, 0);
    const [first, last] = range || wholeSpan(run);
    const part = percent(total / (last - first)) + " of the time (" + duration(total) + ")";
    const told = part + " every vCPU was idle: " + counted(waits.length, "wait");
    const { wakers } = this.model.data;
    const rows = waitTotals(this.model, waits)
      .slice(0, MOST_WAITS)
      .map((row) => {
        const { from, until, by } = row.longest;
        const leaf = this.code(this.model.data.nodes.function[this.model.data.stacks.node[by]]);
        const waker = wakers[row.waker];
        const who = make("span", {}, isolated(waker.name), " ", make("span", { class: "dim" }, isolated(waker.doing)));
        const select = this.select("the longest wait that " + waker.name + " ended", from, until + 1);
        const waited = make("data", { value: row.total }, duration(row.total));
        return [who, waited, grouped.format(row.waits), duration(until - from), leaf, select];
      });
    const heads = ["What ran then", "Waited", "Waits", "Longest", "In", ""];
    return [head, make("p", { class: "dim" }, told), plainTable("By what ended the waits", heads, rows)];
  }
}
