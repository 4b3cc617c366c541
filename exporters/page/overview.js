// The time line over the page: what each vCPU did, to choose a range of time in.

const STRIP = 26;

/** The strips over the page: what kind of code each vCPU ran, and the range that all views are of. */
class Overview {
  constructor(model, paint, words, actions) {
    this.model = model;
    this.paint = paint;
    this.actions = actions;
    this.words = words;
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
      context.fillText(this.words + "vCPU " + track.vcpu, 4, top + 8);
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
    const byGuest = guestMoment(this.run, time);
    const when = moment(time, (until - from) / 500) + (byGuest && " (guest's clock " + byGuest + ")");
    tip.show(event, [when, ...near.map((mark) => moment(mark.time) + " " + mark.name)]);
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
