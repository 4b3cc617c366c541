// Time from left to right: what its views share.

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

/** What the guest's own clock showed at a moment of running time, nanoseconds; null before it ran, or where nobody read it. */
function guestTime(run, time) {
  const clocks = run.clocks;
  const points = clocks.find((clock) => time <= clock[clock.length - 1][0]) || clocks[clocks.length - 1];
  if (!points) return null;
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= time) low = middle;
    else high = middle;
  }
  const [[from, first], [until, last]] = [points[low], points[high]];
  const inside = from < until && from <= time && time <= until;
  const shown = inside ? first + ((time - from) / (until - from)) * (last - first) : time < from ? first + time - from : last + time - until;
  return shown < 0 ? null : shown;
}

/** A moment by the guest's own clock, in words; "" where it is not known. */
function guestMoment(run, time) {
  const shown = guestTime(run, time);
  return shown === null ? "" : moment(shown, 1e5);
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
