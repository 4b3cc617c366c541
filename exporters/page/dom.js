// Elements and figures. Text of the recording goes into text nodes only.

const byId = (id) => document.getElementById(id);

/** An element with attributes (properties where they are functions or booleans) and children; strings become text. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function" || typeof value === "boolean") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A name of the guest, set apart from the direction of the text around it; a tooltip has it with its module, cut short. */
function nameOf(text, css = "name", module = "") {
  return make("bdi", { class: css, title: shortened(text, 300) + (module && "\n" + shortened(module, 300)) }, text);
}

function shortened(text, most) {
  return text.length <= most ? text : text.slice(0, most - 1) + "…";
}

/** Where a function is in the source, "" where that is not known. */
function sourceOf(functions, code) {
  const path = functions.path ? functions.path[code] : "";
  return path && functions.line[code] ? path + ":" + functions.line[code] : path;
}

const grouped = new Intl.NumberFormat("en-US");

function counted(number, word) {
  return grouped.format(number) + " " + word + (number === 1 ? "" : "s");
}

/** A share of 1; 100 % is said of all only, 0 % of none only. */
function percent(share, digits = 1) {
  const least = 10 ** -digits;
  let figure = 100 * share;
  if (figure > 0 && figure < least) return "< " + least.toFixed(digits) + " %";
  if (figure > 100 - least && figure < 100) figure = 100 - least;
  return figure.toFixed(digits) + " %";
}

function duration(ns) {
  const size = Math.abs(ns);
  if (size >= 1e9) return (ns / 1e9).toFixed(2) + " s";
  if (size >= 1e6) return (ns / 1e6).toFixed(2) + " ms";
  return (ns / 1e3).toFixed(2) + " µs";
}

/** A moment on the time axis, as precise as a step of it. */
function moment(ns, step = 1e6) {
  const digits = Math.min(6, Math.max(0, Math.ceil(9 - Math.log10(step))));
  return (ns / 1e9).toFixed(digits) + " s";
}

/** Steps of 1, 2 or 5 that leave about so many on an axis. */
function niceStep(span, most) {
  const rough = span / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

/** Calls a function once in the next frame, however often it was asked for. */
function onceAFrame(work) {
  let asked = 0;
  return () => {
    if (!asked) {
      asked = requestAnimationFrame(() => {
        asked = 0;
        work();
      });
    }
  };
}

/** Says something to those who do not see the picture. */
function announce(text) {
  byId("live").textContent = text;
}

const tip = {
  /** Lines beside the pointer. */
  show(event, lines) {
    const box = byId("tip");
    box.replaceChildren(...lines.map((line, index) => make("div", { class: index ? "" : "strong" }, make("bdi", {}, line))));
    box.hidden = false;
    const { innerWidth, innerHeight } = window;
    const left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
    const above = event.clientY + 18 + box.offsetHeight > innerHeight;
    box.style.left = Math.max(4, left) + "px";
    box.style.top = (above ? event.clientY - box.offsetHeight - 10 : event.clientY + 18) + "px";
  },
  hide() {
    byId("tip").hidden = true;
  },
};
