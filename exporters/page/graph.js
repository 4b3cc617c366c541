// The flame graph: boxes on a canvas, with zoom, search, keyboard and words for what is pointed at.

const ROW = 18;
const LEAST_WIDTH = 0.4;
const MOST_LEVELS = 800;

class Graph {
  /** tell: called with a box (or null) that is pointed at or focused. changed: called after a zoom. */
  constructor(model, paint, actions) {
    this.model = model;
    this.paint = paint;
    this.actions = actions;
    this.canvas = byId("graph");
    this.zoom = [];
    this.focus = null;
    this.boxes = [];
    this.rooted = "top";
    this.listen();
  }

  /** Shows a tree. found: functions to highlight, marked: one to outline. */
  show(tree, { found, marked, rooted, difference }) {
    Object.assign(this, { tree, found, marked, rooted, difference });
    this.lay();
  }

  lay() {
    if (!this.tree) return;
    const width = (this.width = Math.max(200, this.canvas.parentElement.clientWidth));
    const { boxes, depth } = this.tree.layout(this.zoom, LEAST_WIDTH / width);
    this.zoom.length = depth;
    this.boxes = boxes.filter((box) => box.level < MOST_LEVELS);
    byId("deep").hidden = this.boxes.length === boxes.length;
    this.levels = this.boxes.reduce((most, box) => Math.max(most, box.level), 0) + 1;
    this.rows = Array.from({ length: this.levels }, () => []);
    for (const box of this.boxes) this.rows[box.level].push(box);
    for (const row of this.rows) row.sort((one, other) => one.start - other.start);
    if (this.focus) this.focus = this.find(pathOf(this.focus));
    /** What is drawn and where, for those who drive the page: pixels from the canvas' corner. */
    this.canvas.boxes = () =>
      this.boxes.map((box) => {
        const shown = { name: this.nameOf(box), hit: this.isHit(box), colour: this.fill(box) };
        return { level: box.level, value: box.value, ...shown, ...this.place(box) };
      });
    this.draw();
    byId("unzoom").disabled = !this.zoom.length;
  }

  nameOf(box) {
    return this.model.data.functions.name[box.code];
  }

  isHit(box) {
    return Boolean(this.found && this.found[box.code] && box.level);
  }

  place(box) {
    const row = this.rooted === "top" ? box.level : this.levels - 1 - box.level;
    return { x: box.start * this.width, y: row * ROW, width: box.share * this.width, height: ROW - 1 };
  }

  draw() {
    const context = this.paint.begin(this.canvas, this.width, this.levels * ROW);
    for (const box of this.boxes) this.drawBox(context, box);
    if (this.focus) this.ring(context, this.focus, this.paint.accent, 2);
  }

  drawBox(context, box) {
    const { paint } = this;
    const { x, y, width, height } = this.place(box);
    const hit = this.isHit(box);
    context.globalAlpha = box.above ? 0.5 : 1;
    context.fillStyle = hit ? paint.match : this.fill(box);
    context.fillRect(x, y, Math.max(width - (width > 2 ? 0.6 : 0), 0.3), height);
    const ink = hit ? "#ffffff" : box.level ? paint["box-ink"] : this.difference ? paint["box-ink"] : paint.wholeInk;
    if (width > 20) paint.label(context, this.nameOf(box), x, y, width, height, ink);
    context.globalAlpha = 1;
    if (this.marked === box.code && width > 1) this.ring(context, box, paint.ink, 1.5);
  }

  fill(box) {
    if (this.difference) return this.paint.difference(this.difference(box));
    return box.level ? this.paint.fill(box.kind, box.code) : this.paint.whole;
  }

  ring(context, box, colour, thick) {
    const { x, y, width, height } = this.place(box);
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.strokeRect(x + thick / 2, y + thick / 2, Math.max(1, width - thick - 0.6), height - thick);
  }

  /** The box of a path of functions, or the one nearest to it that is drawn. */
  find(path) {
    let at = this.boxes[0];
    for (const code of path) {
      const next = this.rows[at.level + 1]?.find((box) => box.parent === at && box.code === code);
      if (!next) break;
      at = next;
    }
    return at;
  }

  hit(event) {
    const frame = this.canvas.getBoundingClientRect();
    const place = Math.floor((event.clientY - frame.top) / ROW);
    const row = this.rows[this.rooted === "top" ? place : this.levels - 1 - place] || [];
    const share = (event.clientX - frame.left) / this.width;
    const index = lowerBound(row.map((box) => box.start), share + 1e-12) - 1;
    const box = row[index];
    return box && share <= box.start + box.share ? box : null;
  }

  focusOn(box, aloud = true) {
    this.focus = box;
    this.draw();
    this.actions.tell(box, aloud);
    if (aloud) this.reveal(box);
  }

  /** Scrolls so that a box can be seen. */
  reveal(box) {
    const pane = this.canvas.parentElement;
    const { y } = this.place(box);
    pane.scrollTop = Math.min(y - ROW, Math.max(pane.scrollTop, y + 2 * ROW - pane.clientHeight));
    const top = this.canvas.getBoundingClientRect().top + y;
    const head = byId("filters").getBoundingClientRect().bottom;
    const foot = byId("details").getBoundingClientRect().top;
    if (top < head) window.scrollBy(0, top - head - ROW);
    else if (top + 2 * ROW > foot) window.scrollBy(0, top + 2 * ROW - foot);
  }

  zoomTo(box) {
    this.zoom = pathOf(box);
    this.focus = box;
    this.lay();
    this.actions.tell(this.focus, true);
  }

  reset() {
    this.zoom = [];
    this.lay();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => {
      const box = this.hit(event);
      canvas.style.cursor = box ? "pointer" : "default";
      if (box) tip.show(event, this.actions.words(box));
      else tip.hide();
    });
    canvas.addEventListener("pointerleave", tip.hide);
    canvas.addEventListener("click", (event) => {
      const box = this.hit(event);
      if (box) {
        this.zoomTo(box);
        this.actions.mark(box);
      }
    });
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) this.focusOn(this.focus || this.boxes[0]);
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const next = this.step(event.key);
      if (next === undefined) return;
      event.preventDefault();
      if (next) this.focusOn(next);
    });
  }

  /** The box that a key leads to; null for none, undefined for keys that mean nothing here. */
  step(key) {
    const at = this.focus || this.boxes[0];
    const inwards = this.rooted === "top" ? "ArrowDown" : "ArrowUp";
    if (key === inwards) return this.widestChild(at);
    if (key === "ArrowDown" || key === "ArrowUp") return at.parent;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const row = this.rows[at.level];
      return row[row.indexOf(at) + (key === "ArrowRight" ? 1 : -1)] || null;
    }
    if (key === "Home") return this.boxes[0];
    if (key === "Enter" || key === " ") {
      this.zoomTo(at);
      this.actions.mark(at);
      return null;
    }
    if (key === "Backspace") {
      this.zoom.pop();
      this.lay();
      return this.focus;
    }
    return undefined;
  }

  widestChild(box) {
    let widest = null;
    for (const child of this.rows[box.level + 1] || []) {
      if (child.parent === box && (!widest || child.share > widest.share)) widest = child;
    }
    return widest;
  }
}
