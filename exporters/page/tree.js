// A summary becomes boxes of a flame graph: which function, how deep, from where to where. Shares are of the width.
//
// Trees are read from the root (callees below their callers) or inverted (the innermost function first, its callers below it). A zoom
// is the path of functions from the root to the box that gets the whole width.

class Tree {
  /** first gives the widths; second, if there is one, what each box is compared with. */
  constructor(model, first, second, inverted) {
    this.model = model;
    this.nodes = model.data.nodes;
    this.first = first;
    this.second = second;
    this.inverted = inverted;
  }

  /** Boxes of at least a share, callers before callees, and how much of the zoom's path there is. */
  layout(zoom, least) {
    let at = this.root();
    const boxes = [this.box(at, null, 0, 1)];
    for (const code of zoom) {
      const next = this.children(at).find((child) => this.codeOf(child) === code && this.valueOf(child) > 0);
      if (!next) break;
      at = next;
      boxes[boxes.length - 1].above = true;
      boxes.push(this.box(at, boxes[boxes.length - 1], 0, 1));
    }
    const depth = boxes.length - 1;
    const whole = this.valueOf(at);
    const waiting = [[at, boxes[depth]]];
    while (waiting.length && whole) {
      const [item, parent] = waiting.pop();
      let start = parent.start;
      for (const child of this.children(item)) {
        const share = this.valueOf(child) / whole;
        if (share >= least) {
          const box = this.box(child, parent, start, share);
          boxes.push(box);
          waiting.push([child, box]);
        }
        start += share;
      }
    }
    return { boxes, depth };
  }

  /** What a box shows: figures of the first summary, and the second's value where there is one. */
  box(item, parent, start, share) {
    const level = parent ? parent.level + 1 : 0;
    const box = { level, parent, start, share, code: this.codeOf(item), above: false, ...this.figures(item) };
    return box;
  }

  root() {
    if (!this.inverted) return 0;
    const leaves = [];
    for (let node = 1; node < this.nodes.depth.length; node++) {
      if (this.first.ownValue[node] || (this.second && this.second.ownValue[node])) leaves.push(node);
    }
    return { at: null, leaves, value: this.first.whole, code: this.nodes.function[0] };
  }

  codeOf(item) {
    return this.inverted ? item.code : this.nodes.function[item];
  }

  valueOf(item) {
    return this.inverted ? item.value : this.first.value[item];
  }

  figures(item) {
    const { first, second, model } = this;
    if (!this.inverted) {
      return {
        node: item,
        kind: model.kindOf(item),
        value: first.value[item],
        weight: first.all.weight[item],
        samples: first.all.samples[item],
        own: first.own.weight[item],
        other: second ? second.value[item] : 0,
      };
    }
    let weight = 0;
    let samples = 0;
    let other = 0;
    for (const leaf of item.leaves) {
      weight += first.own.weight[leaf];
      samples += first.own.samples[leaf];
      if (second) other += second.ownValue[leaf];
    }
    const kind = item.at === null ? model.processKind : model.kindOf(item.at[0]);
    return { node: null, kind, value: item.value, weight, samples, own: 0, other };
  }

  children(item) {
    const { nodes } = this;
    if (!this.inverted) {
      const found = [];
      for (let node = item + 1; node < nodes.end[item]; node = nodes.end[node]) if (this.first.value[node]) found.push(node);
      return found;
    }
    const groups = new Map();
    for (let index = 0; index < item.leaves.length; index++) {
      const leaf = item.leaves[index];
      const node = item.at === null ? leaf : nodes.parent[item.at[index]];
      if (node <= 0) continue;
      const code = nodes.function[node];
      let group = groups.get(code);
      if (!group) groups.set(code, (group = { at: [], leaves: [], value: 0, code }));
      group.at.push(node);
      group.leaves.push(leaf);
      group.value += this.first.ownValue[leaf];
    }
    return [...groups.values()].sort((one, other) => other.value - one.value || one.code - other.code);
  }
}

/** Functions from below the root to a box. */
function pathOf(box) {
  const path = [];
  for (let at = box; at.parent; at = at.parent) path.push(at.code);
  return path.reverse();
}
