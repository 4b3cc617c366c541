// Time from left to right: what each vCPU did (to choose a range in), and its stacks one beside the other (the flame chart).

const STRIP = 26;
const AXIS = 18;
const MARKS = 16;
const LEAST_DRAG = 4;

/** From the first sample's beginning to the last one's end, nanoseconds. */
function wholeSpan(run) {
  let from = Infinity;
  let until = 0;
  for (const track of run.vcpus) {
    if (!track.time.length) continue;
    from = Math.min(from, track.time[0] - track.weight[0]);
    until = Math.max(until, track.time[track.time.length - 1]);
  }
  return from < until ? [Math.max(0, from), until] : [0, 1];
}

/** Turns dragging over an element into a range of time. span: the time it shows; done: called with the range, null for a click. */
function dragRange(element, span, { move, done }) {
  let from = null;
  const at = (event) => {
    const frame = element.getBoundingClientRect();
    const [first, last] = span();
    return first + (Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width)) * (last - first));
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = { x: event.clientX, time: at(event) };
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    if (from && Math.abs(event.clientX - from.x) >= LEAST_DRAG) move([from.time, at(event)].sort((a, b) => a - b));
  });
  element.addEventListener("pointerup", (event) => {
    if (!from) return;
    const range = [from.time, at(event)].sort((a, b) => a - b);
    const dragged = Math.abs(event.clientX - from.x) >= LEAST_DRAG;
    from = null;
    done(dragged ? range : null, event);
  });
  element.addEventListener("pointercancel", () => {
    from = null;
  });
}

/** Ticks and numbers of a time axis. */
function drawAxis(context, paint, [from, until], width, y) {
  const step = niceStep(until - from, Math.max(2, width / 110));
  context.fillStyle = paint.dim;
  context.strokeStyle = paint.line;
  context.lineWidth = 1;
  for (let time = Math.ceil(from / step) * step; time <= until; time += step) {
    const x = Math.round(((time - from) / (until - from)) * width) + 0.5;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x, y + 5);
    context.stroke();
    const text = moment(time, step);
    const wide = context.measureText(text).width;
    context.fillText(text, Math.min(Math.max(0, x + 3), width - wide), y + 9);
  }
}

/** Flags of milestones that have room, and a line down from each. */
function drawMilestones(context, paint, milestones, [from, until], width, top, bottom) {
  let free = 0;
  context.lineWidth = 1;
  for (const milestone of milestones) {
    if (milestone.time < from || milestone.time > until) continue;
    const x = Math.round(((milestone.time - from) / (until - from)) * width) + 0.5;
    const text = shortened(milestone.name, 28);
    const wide = context.measureText(text).width + 6;
    const start = Math.min(x + 3, width - wide);
    const hasRoom = start >= free;
    context.strokeStyle = paint.accent;
    context.globalAlpha = 0.55;
    context.beginPath();
    context.moveTo(x, hasRoom ? top : top + MARKS - 2);
    context.lineTo(x, bottom);
    context.stroke();
    context.globalAlpha = 1;
    if (!hasRoom) continue;
    context.fillStyle = paint.accent;
    context.fillText(text, start, top + MARKS / 2);
    free = start + wide;
  }
}

/** The strips over the page: what kind of code each vCPU ran, and the range that all views are of. */
class Overview {
  constructor(model, paint, words, actions) {
    this.model = model;
    this.paint = paint;
    this.actions = actions;
    this.canvas = make("canvas", {
      class: "overview",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "time line",
      "aria-label":
        words + "What each vCPU ran over time. Arrow keys move the selected range, with Shift its end; Escape selects all.",
    });
    this.range = null;
    dragRange(this.canvas, () => this.span, {
      move: (range) => this.choose(range),
      done: (range) => this.choose(range),
    });
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", tip.hide);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  choose(range) {
    this.actions.choose(range);
  }

  /** Shows a run: passes says which stacks are in colour. */
  show(run, passes, range) {
    if (run !== this.run || passes !== this.passes) this.picture = null;
    Object.assign(this, { run, passes, range });
    this.span = wholeSpan(run);
    this.draw();
  }

  /** Only the range has changed. */
  mark(range) {
    this.range = range;
    this.draw();
  }

  draw() {
    if (!this.run || this.canvas.hidden) return;
    const width = Math.max(200, this.canvas.parentElement.clientWidth);
    this.top = this.run.milestones.length ? MARKS : 0;
    const height = this.top + this.run.vcpus.length * STRIP + AXIS;
    if (!this.picture || this.picture.wide !== width) this.picture = this.paintStrips(width, height);
    const context = this.paint.begin(this.canvas, width, height);
    context.drawImage(this.picture, 0, 0, width, height);
    if (!this.range) return;
    const [from, until] = this.range.map((time) => this.place(time, width));
    context.fillStyle = this.paint.ground;
    context.globalAlpha = 0.72;
    context.fillRect(0, this.top, from, height - this.top - AXIS);
    context.fillRect(until, this.top, width - until, height - this.top - AXIS);
    context.globalAlpha = 1;
    context.strokeStyle = this.paint.accent;
    context.lineWidth = 2;
    context.strokeRect(from, this.top, Math.max(1, until - from), height - this.top - AXIS);
  }

  place(time, width) {
    return ((time - this.span[0]) / (this.span[1] - this.span[0])) * width;
  }

  paintStrips(width, height) {
    const { paint, run } = this;
    const canvas = document.createElement("canvas");
    const context = paint.begin(canvas, width, height);
    canvas.wide = width;
    run.vcpus.forEach((track, row) => {
      const top = this.top + row * STRIP;
      context.fillStyle = paint.faint;
      context.fillRect(0, top, width, STRIP - 2);
      this.paintStrip(context, this.shares(track, width), top, STRIP - 2);
      context.fillStyle = paint.ink;
      context.globalAlpha = 0.85;
      context.fillText("vCPU " + track.vcpu, 4, top + 8);
      context.globalAlpha = 1;
    });
    drawMilestones(context, paint, run.milestones, this.span, width, 0, height - AXIS);
    drawAxis(context, paint, this.span, width, height - AXIS);
    return canvas;
  }

  /** For each pixel the time of each kind of innermost code. */
  shares(track, width) {
    const { data, idleKind } = this.model;
    const kinds = data.kinds.length;
    const sums = new Float64Array(width * kinds);
    const scale = width / (this.span[1] - this.span[0]);
    for (let index = 0; index < track.time.length; index++) {
      const stack = track.stack[index];
      if (!this.passes[stack]) continue;
      const kind = data.stacks.idle[stack] ? idleKind : data.functions.kind[data.nodes.function[data.stacks.node[stack]]];
      const until = (track.time[index] - this.span[0]) * scale;
      const from = until - track.weight[index] * scale;
      const last = Math.min(width - 1, Math.floor(until));
      for (let x = Math.max(0, Math.floor(from)); x <= last; x++) {
        sums[x * kinds + kind] += Math.min(until, x + 1) - Math.max(from, x);
      }
    }
    return sums;
  }

  /** Busy kinds from the bottom; idle and what is left out stay as pale as the ground. */
  paintStrip(context, sums, top, tall) {
    const { kinds } = this.model.data;
    const { paint } = this;
    for (let x = 0; x < sums.length / kinds.length; x++) {
      let bottom = top + tall;
      for (let kind = 0; kind < kinds.length; kind++) {
        if (kind === this.model.idleKind) continue;
        const part = Math.min(1, sums[x * kinds.length + kind]) * tall;
        if (part <= 0) continue;
        context.fillStyle = paint.tints[kind][2];
        context.fillRect(x, bottom - part, 1, part);
        bottom -= part;
      }
    }
  }

  point(event) {
    if (event.buttons) {
      tip.hide();
      return;
    }
    const frame = this.canvas.getBoundingClientRect();
    const [from, until] = this.span;
    const time = from + ((event.clientX - frame.left) / frame.width) * (until - from);
    const near = this.run.milestones.filter((mark) => Math.abs(this.place(mark.time, frame.width) - (event.clientX - frame.left)) < 5);
    tip.show(event, [moment(time, (until - from) / 500), ...near.map((mark) => moment(mark.time) + " " + mark.name)]);
  }

  /** Arrow keys move the range, with Shift its end; the first one makes a range. */
  key(event) {
    const [from, until] = this.span;
    const step = ((event.key === "ArrowLeft" ? -1 : 1) * (until - from)) / 40;
    if (event.key === "Escape" && this.range) {
      this.choose(null);
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const [first, last] = this.range || [from, from + (until - from) / 10];
      if (!this.range) this.choose([first, last]);
      else if (event.shiftKey) this.choose([first, Math.min(until, Math.max(first + Math.abs(step) / 4, last + step))]);
      else {
        const moved = Math.max(from - first, Math.min(until - last, step));
        this.choose([first + moved, last + moved]);
      }
      announce("Selected " + this.range.map((time) => moment(time)).join(" to "));
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

const CHART_ROW = 15;

/** The flame chart: for each vCPU the stacks over time. A pixel shows the sample that takes most of it. */
class Chart {
  constructor(model, paint, actions) {
    this.model = model;
    this.paint = paint;
    this.actions = actions;
    this.box = byId("chart");
    this.tracks = [];
  }

  show(run, passes, range, found) {
    Object.assign(this, { run, passes, found });
    this.span = range || wholeSpan(run);
    if (this.drawn !== run) this.build(run);
    this.draw();
  }

  build(run) {
    this.drawn = run;
    this.axis = make("canvas", { class: "axis", "aria-hidden": "true" });
    this.tracks = run.vcpus.map((track) => {
      const canvas = make("canvas", {
        tabindex: "0",
        role: "application",
        "aria-roledescription": "flame chart",
        "aria-label": "Stacks of vCPU " + track.vcpu + " over time. Arrow keys move through the time and the stack.",
      });
      const part = { track, canvas, boxes: [], focus: null };
      this.listen(part);
      return part;
    });
    this.box.replaceChildren(
      this.axis,
      ...this.tracks.flatMap((part) => [make("h3", {}, "vCPU " + part.track.vcpu), part.canvas]),
    );
  }

  draw() {
    if (!this.drawn || !this.box.clientWidth) return;
    const width = (this.width = Math.max(200, this.box.clientWidth));
    const top = this.run.milestones.length ? MARKS : 0;
    const context = this.paint.begin(this.axis, width, top + AXIS);
    drawMilestones(context, this.paint, this.run.milestones, this.span, width, 0, top + AXIS);
    drawAxis(context, this.paint, this.span, width, top);
    for (const part of this.tracks) {
      part.boxes = this.boxesOf(part.track, width);
      part.focus = part.focus && part.boxes.find((box) => box.node === part.focus.node && box.x + box.width > part.focus.x);
      part.levels = part.boxes.reduce((most, box) => Math.max(most, box.level + 1), 1);
      part.canvas.boxes = () => part.boxes.map((box) => ({ ...box, name: this.nameOf(box) }));
      this.drawTrack(part);
    }
  }

  nameOf(box) {
    return this.model.data.functions.name[this.model.data.nodes.function[box.node]];
  }

  /** The stack of each pixel, -1 for none: of the sample that takes most of it. */
  columns(track, width) {
    const [from, until] = this.span;
    const scale = width / (until - from);
    const shown = new Int32Array(width).fill(-1);
    const taken = new Float64Array(width);
    for (let index = lowerBound(track.time, from); index < track.time.length; index++) {
      const end = (track.time[index] - from) * scale;
      const start = end - track.weight[index] * scale;
      if (start >= width) break;
      if (!this.passes[track.stack[index]]) continue;
      const last = Math.min(width - 1, Math.ceil(end) - 1);
      for (let x = Math.max(0, Math.floor(start)); x <= last; x++) {
        const part = Math.min(end, x + 1) - Math.max(start, x);
        if (part <= taken[x]) continue;
        taken[x] = part;
        shown[x] = track.stack[index];
      }
    }
    return shown;
  }

  /** Neighbouring pixels with the same callers are one box. */
  boxesOf(track, width) {
    const { nodes, stacks } = this.model.data;
    const open = [];
    const boxes = [];
    let before = -1;
    this.columns(track, width).forEach((stack, x) => {
      if (stack === before) {
        for (const box of open) box.width++;
        return;
      }
      before = stack;
      const path = [];
      if (stack >= 0) for (let node = stacks.node[stack]; node > 0; node = nodes.parent[node]) path.push(node);
      path.reverse();
      let shared = 0;
      while (shared < path.length && shared < open.length && open[shared].node === path[shared]) open[shared++].width++;
      open.length = shared;
      for (const node of path.slice(shared)) {
        const box = { node, level: open.length, x, width: 1 };
        open.push(box);
        boxes.push(box);
      }
    });
    return boxes;
  }

  drawTrack(part) {
    const { paint, model } = this;
    const { functions, nodes } = model.data;
    const context = paint.begin(part.canvas, this.width, part.levels * CHART_ROW);
    for (const box of part.boxes) {
      const code = nodes.function[box.node];
      const hit = this.found && this.found[code];
      const y = box.level * CHART_ROW;
      context.fillStyle = hit ? paint.match : paint.fill(model.kindOf(box.node), code);
      context.fillRect(box.x, y, box.width > 2 ? box.width - 0.5 : box.width, CHART_ROW - 1);
      if (box.width > 20) {
        paint.label(context, functions.name[code], box.x, y, box.width, CHART_ROW - 1, hit ? "#ffffff" : paint["box-ink"]);
      }
    }
    if (part.focus) {
      context.strokeStyle = paint.accent;
      context.lineWidth = 2;
      context.strokeRect(part.focus.x + 1, part.focus.level * CHART_ROW + 1, Math.max(1, part.focus.width - 2), CHART_ROW - 3);
    }
    context.strokeStyle = paint.accent;
    context.globalAlpha = 0.4;
    context.lineWidth = 1;
    for (const { time } of this.run.milestones) {
      const x = Math.round(((time - this.span[0]) / (this.span[1] - this.span[0])) * this.width) + 0.5;
      if (x < 0 || x > this.width) continue;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, part.levels * CHART_ROW);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  timesOf(box) {
    const [from, until] = this.span;
    return [box.x, box.x + box.width].map((x) => from + (x / this.width) * (until - from));
  }

  words(box) {
    const { data } = this.model;
    const code = data.nodes.function[box.node];
    const module = data.modules[data.functions.module[code]];
    const [from, until] = this.timesOf(box);
    const step = (until - from) / 20;
    const when = moment(from, step) + " to " + moment(until, step) + " (about " + duration(until - from) + ")";
    return [data.functions.name[code], ...(module ? [module] : []), when];
  }

  hit(part, event) {
    const frame = part.canvas.getBoundingClientRect();
    const level = Math.floor((event.clientY - frame.top) / CHART_ROW);
    const x = Math.floor(event.clientX - frame.left);
    return part.boxes.find((box) => box.level === level && box.x <= x && x < box.x + box.width) || null;
  }

  focusOn(part, box) {
    part.focus = box;
    this.drawTrack(part);
    announce(this.words(box).join(", ") + ", level " + (box.level + 1));
    this.actions.mark({ code: this.model.data.nodes.function[box.node] });
  }

  listen(part) {
    const { canvas } = part;
    dragRange(canvas, () => this.span, {
      move: () => tip.hide(),
      done: (range, event) => {
        if (range) this.actions.choose(range);
        else {
          const box = this.hit(part, event);
          if (box) this.focusOn(part, box);
        }
      },
    });
    canvas.addEventListener("dblclick", (event) => {
      const box = this.hit(part, event);
      if (box) this.actions.choose(this.timesOf(box));
    });
    canvas.addEventListener("pointermove", (event) => {
      const box = event.buttons ? null : this.hit(part, event);
      if (box) tip.show(event, this.words(box));
      else tip.hide();
    });
    canvas.addEventListener("pointerleave", tip.hide);
    canvas.addEventListener("keydown", (event) => {
      const next = this.step(part, event.key);
      if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (next) this.focusOn(part, next);
    });
  }

  /** The box that a key leads to; null for none, undefined for keys that mean nothing here. */
  step(part, key) {
    const at = part.focus;
    const inside = (outer, inner) => outer.x <= inner.x && inner.x + inner.width <= outer.x + outer.width;
    if (!key.startsWith("Arrow") && key !== "Enter") return undefined;
    if (!at) return part.boxes[0] || null;
    if (key === "Enter") {
      this.actions.choose(this.timesOf(at));
      return null;
    }
    if (key === "ArrowUp") return part.boxes.find((box) => box.level === at.level - 1 && inside(box, at)) || null;
    if (key === "ArrowDown") return part.boxes.find((box) => box.level === at.level + 1 && inside(at, box)) || null;
    const row = part.boxes.filter((box) => box.level === at.level);
    return row[row.indexOf(at) + (key === "ArrowRight" ? 1 : -1)] || null;
  }
}
