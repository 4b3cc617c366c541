// Colours and letters on a canvas, in the light or dark of the page.

class Paint {
  constructor(data) {
    this.data = data;
    this.font = '11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace';
    const probe = document.createElement("canvas").getContext("2d");
    probe.font = this.font;
    this.letter = probe.measureText("mmmmmmmmmm").width / 10;
    this.refresh();
  }

  /** Takes the colours from the style sheet again. */
  refresh() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue("--" + name).trim();
    this.dark = read("dark") === "1";
    for (const name of ["ground", "ink", "dim", "line", "accent", "match", "box-ink", "faint", "equal"]) this[name] = read(name);
    const shade = (tint) => (this.dark ? mixed(tint, "#12151a", 0.28) : tint);
    this.tints = this.data.kinds.map((kind) => kind.tints.map(shade));
    this.whole = this.dark ? "#5b616b" : this.data.whole;
    this.wholeInk = this.dark ? "#ffffff" : "#1c1c1c";
  }

  /** The colour of a function: its kind's, in one of the tints. */
  fill(kind, code) {
    const tints = this.tints[kind];
    return tints[code % tints.length];
  }

  /**
   * How much more (red) or less (blue) a box takes than in the run it is compared with, white where equal; change is of 1: -1 where it
   * is gone, and bounded at 1 where it is new or doubled.
   */
  difference(change) {
    const neutral = this.equal;
    const strength = Math.min(1, Math.abs(change)) ** 0.75;
    return mixed(neutral, change > 0 ? "#e0473d" : "#3f83d6", strength);
  }

  /** Makes a canvas as large as is asked for, sharp on any screen; gives its context, cleared. */
  begin(canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 16000 / Math.max(1, height));
    const [real, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== real) canvas.width = real;
    if (canvas.height !== tall) canvas.height = tall;
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = this.font;
    context.textBaseline = "middle";
    context.direction = "ltr";
    return context;
  }

  /** A name within a box, if three letters of it have room. */
  label(context, name, x, y, width, height, ink) {
    const room = Math.floor((width - 6) / this.letter);
    if (room < 3) return;
    const plain = /^[ -~]*$/.test(name.length > room ? name.slice(0, room) : name);
    context.fillStyle = ink;
    if (plain) {
      context.fillText(shortened(name, room), x + 3, y + height / 2 + 0.5);
      return;
    }
    // Other scripts are as wide as they are: what is too long is cut by the box.
    context.save();
    context.beginPath();
    context.rect(x + 1, y, width - 2, height);
    context.clip();
    context.fillText("\u2066" + shortened(name, room) + "\u2069", x + 3, y + height / 2 + 0.5);
    context.restore();
  }
}

/** A colour on the way from one to another, both as #rrggbb. */
function mixed(from, to, share) {
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [one, other] = [parts(from), parts(to)];
  return "#" + one.map((part, at) => Math.round(part + (other[at] - part) * share).toString(16).padStart(2, "0")).join("");
}
