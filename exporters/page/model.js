// What is selected becomes sums: by stack, by node of the tree, by function and so on. Nothing here touches the page.

/** The words of a search as a pattern; what is no pattern is searched for as it is. */
function searchPattern(words) {
  try {
    return new RegExp(words, "i");
  } catch {
    return new RegExp(words.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "i");
  }
}

class Model {
  constructor(data) {
    this.data = data;
    const { nodes, functions, stacks } = data;
    const count = nodes.depth.length;
    /** 1 where no caller is the same function: totals of functions count recursion once. */
    this.outermost = new Uint8Array(count);
    /** 1 where all that was sampled below is the idle loop waiting. */
    this.idle = new Uint8Array(count).fill(1);
    const open = new Int32Array(functions.name.length);
    const path = [];
    for (let node = 0; node < count; node++) {
      while (path.length > nodes.depth[node]) open[path.pop()]--;
      const name = nodes.function[node];
      if (open[name]++ === 0) this.outermost[node] = 1;
      path.push(name);
    }
    const busy = new Uint8Array(count);
    for (let stack = 0; stack < stacks.node.length; stack++) if (!stacks.idle[stack]) busy[stacks.node[stack]] = 1;
    for (let node = count - 1; node >= 0; node--) {
      if (!busy[node]) continue;
      this.idle[node] = 0;
      if (node) busy[nodes.parent[node]] = 1;
    }
    /** Processes of one name, whatever their numbers, are filtered by together. */
    this.groups = [...new Set(data.processes.map((process) => process.name))].sort();
    this.groupOf = data.processes.map((process) => this.groups.indexOf(process.name));
    this.kindOf = (node) => (this.idle[node] ? this.idleKind : functions.kind[nodes.function[node]]);
    this.idleKind = data.kinds.findIndex((kind) => kind.name === "idle");
    this.processKind = data.kinds.findIndex((kind) => kind.name === "process");
  }

  /** Each function that a search finds, as 1; null where nothing is searched for. */
  found(words) {
    if (!words) return null;
    const wanted = searchPattern(words);
    const { name, module } = this.data.functions;
    const hits = new Uint8Array(name.length);
    for (let index = 0; index < hits.length; index++) {
      if (wanted.test(name[index]) || wanted.test(this.data.modules[module[index]])) hits[index] = 1;
    }
    hits[this.data.nodes.function[0]] = 0;
    return hits;
  }

  /** Each node that is on or below a function that counts, as 1. */
  below(counts) {
    const { nodes } = this.data;
    const marks = new Uint8Array(nodes.depth.length);
    for (let node = 1; node < marks.length; node++) {
      if (counts[nodes.function[node]] || marks[nodes.parent[node]]) marks[node] = 1;
    }
    return marks;
  }

  /** Which stacks the filters let through, as 1 each; the same object as long as the filters and the search are the same. */
  passing(filter, found, words) {
    const asked = JSON.stringify([filter, filter.onlyFound && words]);
    if (asked !== this.asked) {
      this.asked = asked;
      this.passed = this.filtered(filter, found);
    }
    return this.passed;
  }

  filtered(filter, found) {
    const { stacks, origins, functions } = this.data;
    const module = filter.module === null ? null : this.below(functions.module.map((own) => own === filter.module));
    const matches = filter.onlyFound && found ? this.below(found) : null;
    const passes = new Uint8Array(stacks.node.length);
    for (let stack = 0; stack < passes.length; stack++) {
      if (!filter.idle && stacks.idle[stack]) continue;
      const origin = origins[stacks.origin[stack]];
      if (filter.process !== null && this.groupOf[origin[0]] !== filter.process) continue;
      if (filter.context !== null && origin[2] !== filter.context) continue;
      if (module && !module[stacks.node[stack]]) continue;
      if (matches && !matches[stacks.node[stack]]) continue;
      passes[stack] = 1;
    }
    return passes;
  }

  /** First and last + 1 of a track's samples whose moments are in a range [from, until) of nanoseconds; all where it is null. */
  within(track, range) {
    if (!range) return [0, track.time.length];
    return [lowerBound(track.time, range[0]), lowerBound(track.time, range[1])];
  }

  /** Weight and samples of each stack in runs, a list of {run, range}, and when it was seen first. */
  sums(parts, vcpu) {
    const count = this.data.stacks.node.length;
    const first = new Float64Array(count).fill(Infinity);
    const sums = { weight: new Float64Array(count), samples: new Float64Array(count), first };
    for (const { run, range } of parts) {
      for (const track of run.vcpus) {
        if (vcpu !== null && track.vcpu !== vcpu) continue;
        const [start, end] = this.within(track, range);
        for (let index = start; index < end; index++) {
          const stack = track.stack[index];
          sums.weight[stack] += track.weight[index];
          sums.samples[stack] += track.samples[index];
          if (track.time[index] < first[stack]) first[stack] = track.time[index];
        }
      }
    }
    return sums;
  }

  /**
   * What passes in runs, each with its range: sums by stack and by node (own: the innermost is this node; all: anywhere below it),
   * and when each was seen first.
   * `value` is what widths are: time, or samples where no time has passed, as in a recording of one halt.
   */
  summary(parts, filter, found, words) {
    const { nodes, stacks } = this.data;
    const count = nodes.depth.length;
    const passes = this.passing(filter, found, words);
    const sums = this.sums(parts, filter.vcpu);
    const own = { weight: new Float64Array(count), samples: new Float64Array(count) };
    const first = new Float64Array(count).fill(Infinity);
    for (let stack = 0; stack < passes.length; stack++) {
      if (!passes[stack]) {
        sums.weight[stack] = sums.samples[stack] = 0;
        continue;
      }
      const node = stacks.node[stack];
      own.weight[node] += sums.weight[stack];
      own.samples[node] += sums.samples[stack];
      first[node] = Math.min(first[node], sums.first[stack]);
    }
    const all = { weight: own.weight.slice(), samples: own.samples.slice(), first };
    for (let node = count - 1; node > 0; node--) {
      first[nodes.parent[node]] = Math.min(first[nodes.parent[node]], first[node]);
      all.weight[nodes.parent[node]] += all.weight[node];
      all.samples[nodes.parent[node]] += all.samples[node];
    }
    const recorded = parts.reduce((sum, part) => sum + part.run.weight, 0);
    const timed = recorded > 0;
    return {
      parts,
      recorded,
      vcpu: filter.vcpu,
      passes,
      sums,
      own,
      all,
      timed,
      weight: all.weight[0],
      samples: all.samples[0],
      whole: timed ? all.weight[0] : all.samples[0],
      value: timed ? all.weight : all.samples,
      ownValue: timed ? own.weight : own.samples,
    };
  }

  /** The share of what is selected that has a found function on its stack. */
  foundShare(summary, found) {
    const { nodes } = this.data;
    let covered = 0;
    let node = 0;
    while (node < nodes.depth.length) {
      if (found[nodes.function[node]]) {
        covered += summary.value[node];
        node = nodes.end[node];
      } else node++;
    }
    return summary.whole ? covered / summary.whole : 0;
  }

  /** Rows of a table: {name, module, kind, own, total, samples, first, key}, by what they are of. */
  rows(summary, by) {
    return by === "function" || by === "module" ? this.codeRows(summary, by) : this.ownerRows(summary, by);
  }

  codeRows(summary, by) {
    const { nodes, functions, modules } = this.data;
    const ofModule = by === "module";
    const count = ofModule ? modules.length : functions.name.length;
    const own = new Float64Array(count);
    const total = new Float64Array(count);
    const samples = new Float64Array(count);
    const first = new Float64Array(count).fill(Infinity);
    const kind = new Int32Array(count).fill(-1);
    const open = ofModule ? new Int32Array(count) : null;
    const path = [];
    for (let node = 0; node < nodes.depth.length; node++) {
      const code = nodes.function[node];
      const key = ofModule ? functions.module[code] : code;
      let outermost = this.outermost[node];
      if (ofModule) {
        while (path.length > nodes.depth[node]) open[path.pop()]--;
        outermost = open[key]++ === 0;
        path.push(key);
      }
      if (!summary.all.samples[node] || functions.kind[code] === this.processKind) continue;
      own[key] += summary.own.weight[node];
      kind[key] = functions.kind[code];
      if (outermost) {
        total[key] += summary.all.weight[node];
        samples[key] += summary.all.samples[node];
        first[key] = Math.min(first[key], summary.all.first[node]);
      }
    }
    const rows = [];
    for (let key = 0; key < count; key++) {
      if (!samples[key]) continue;
      const name = ofModule ? modules[key] : functions.name[key];
      const module = ofModule ? "" : modules[functions.module[key]];
      const source = ofModule ? "" : sourceOf(functions, key);
      const figures = { own: own[key], total: total[key], samples: samples[key], first: first[key] };
      rows.push({ key, name, group: name, module, source, kind: kind[key], ...figures });
    }
    return rows;
  }

  ownerRows(summary, by) {
    const { stacks, origins } = this.data;
    const places = { process: 0, thread: 1, context: 2, "system call": 3 };
    if (by === "vCPU") return this.vcpuRows(summary);
    const rows = new Map();
    for (let stack = 0; stack < stacks.node.length; stack++) {
      if (!summary.sums.samples[stack]) continue;
      const key = origins[stacks.origin[stack]][places[by]];
      if (key < 0) continue;
      let row = rows.get(key);
      if (!row) {
        row = { key, ...this.ownerName(by, key), module: "", kind: -1, own: 0, total: 0, samples: 0, first: Infinity };
        rows.set(key, row);
      }
      row.first = Math.min(row.first, summary.sums.first[stack]);
      row.own += summary.sums.weight[stack];
      row.total = row.own;
      row.samples += summary.sums.samples[stack];
    }
    return [...rows.values()];
  }

  ownerName(by, key) {
    if (by === "context") return { name: this.data.contexts[key], group: this.data.contexts[key] };
    const owner = this.data[{ process: "processes", thread: "threads", "system call": "calls" }[by]][key];
    return { name: owner.pid === null ? owner.name : owner.name + " (" + owner.pid + ")", group: owner.name };
  }

  /** Of each vCPU, what passes; needs the samples again, as sums by stack do not know. */
  vcpuRows(summary) {
    const rows = new Map();
    for (const { run, range } of summary.parts) {
      for (const track of run.vcpus) {
        if (summary.vcpu !== null && track.vcpu !== summary.vcpu) continue;
        const [first, last] = this.within(track, range);
        const name = "vCPU " + track.vcpu;
        const none = { key: track.vcpu, name, group: name, module: "", kind: -1, own: 0, samples: 0, first: Infinity };
        const row = rows.get(track.vcpu) || none;
        for (let index = first; index < last; index++) {
          if (!summary.passes[track.stack[index]]) continue;
          row.own += track.weight[index];
          row.samples += track.samples[index];
          row.first = Math.min(row.first, track.time[index]);
        }
        row.total = row.own;
        if (row.samples) rows.set(track.vcpu, row);
      }
    }
    return [...rows.values()];
  }
}

/** The first place in ascending numbers that is not below one. */
function lowerBound(ascending, least) {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < least) low = middle + 1;
    else high = middle;
  }
  return low;
}
