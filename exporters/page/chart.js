// The flame chart: stacks beside each other as time went by.

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
      ...this.tracks.flatMap((part) => [make("h2", {}, "vCPU " + part.track.vcpu), part.canvas]),
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
    const byGuest = guestMoment(this.run, from);
    return [data.functions.name[code], ...(module ? [module] : []), when, ...(byGuest ? ["by the guest's clock from " + byGuest] : [])];
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
