// Makes a flame graph's picture zoom, search and tell about frames. Without scripts it stays a readable picture.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.querySelector("svg.guestprof");
  const pad = Number(svg.dataset.pad);
  const drawn = Number(svg.dataset.plot); // width that the picture was laid out for, pixels
  const precision = 0.002 / drawn; // coordinates were rounded to 0.001 pixel
  const details = svg.querySelector("#details");
  const legend = svg.querySelector("#legend");
  const frames = Array.from(svg.querySelectorAll(".f"), function (group) {
    const rect = group.querySelector("rect");
    return {
      group: group,
      rect: rect,
      text: group.querySelector("text"),
      title: group.querySelector("title").textContent,
      name: group.dataset.n,
      level: Number(group.dataset.l),
      start: (Number(rect.getAttribute("x")) - pad) / drawn,
      share: Number(rect.getAttribute("width")) / drawn,
    };
  });
  let zoomed = { level: 0, start: 0, share: 1 };
  let plot = drawn;

  function element(kind, attributes, parent) {
    const made = document.createElementNS(SVG, kind);
    for (const key of Object.keys(attributes)) made.setAttribute(key, attributes[key]);
    parent.appendChild(made);
    return made;
  }

  function letterWidth() {
    const probe = element("text", { x: 0, y: 0 }, svg);
    probe.textContent = "mmmmmmmmmmmmmmmmmmmm";
    const width = probe.getComputedTextLength() / 20;
    probe.remove();
    return width || 6.7;
  }
  const letter = letterWidth();

  function label(frame, width) {
    const room = Math.floor((width - 6) / letter);
    if (room < 3) return "";
    const letters = Array.from(frame.name);
    return letters.length <= room ? frame.name : letters.slice(0, room - 1).join("") + "…";
  }

  function place(frame, start, share) {
    const x = pad + start * plot;
    const width = share * plot;
    frame.group.classList.remove("hidden");
    frame.rect.setAttribute("x", x.toFixed(3));
    frame.rect.setAttribute("width", width.toFixed(3));
    frame.text.setAttribute("x", (x + 3).toFixed(3));
    frame.text.textContent = label(frame, width);
  }

  function render() {
    const end = zoomed.start + zoomed.share;
    for (const frame of frames) {
      const above = frame.level < zoomed.level;
      const holds = frame.start <= zoomed.start + precision && frame.start + frame.share >= end - precision;
      const within = frame.start >= zoomed.start - precision && frame.start + frame.share <= end + precision;
      frame.group.classList.toggle("faded", above);
      if (above && holds) place(frame, 0, 1);
      else if (!above && within) place(frame, (frame.start - zoomed.start) / zoomed.share, frame.share / zoomed.share);
      else frame.group.classList.add("hidden");
    }
    reset.classList.toggle("hidden", zoomed.level === 0);
  }

  function zoom(frame) {
    zoomed = frame;
    render();
  }

  function tell(frame) {
    details.textContent = frame ? frame.title : "";
    legend.classList.toggle("hidden", Boolean(frame));
  }

  const reset = element("text", { class: "button hidden", id: "reset", y: 26, "text-anchor": "end" }, svg);
  reset.textContent = "Reset zoom";
  reset.addEventListener("click", function () {
    zoom({ level: 0, start: 0, share: 1 });
  });
  const matched = element("text", { id: "matched", y: 46, "text-anchor": "end" }, svg);
  const box = element("foreignObject", { y: 10, width: 210, height: 26 }, svg);
  const input = document.createElementNS("http://www.w3.org/1999/xhtml", "input");
  input.setAttribute("id", "search");
  input.setAttribute("placeholder", "Search (Ctrl-F)");
  input.setAttribute("aria-label", "Search for functions");
  input.setAttribute("style", "box-sizing:border-box;width:100%;height:24px;font:12px sans-serif;padding:2px 6px");
  box.appendChild(input);

  function pattern(words) {
    try {
      return new RegExp(words, "i");
    } catch {
      return new RegExp(words.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"), "i");
    }
  }

  function search() {
    const wanted = input.value === "" ? null : pattern(input.value);
    const found = [];
    for (const frame of frames) {
      const hit = wanted !== null && frame.level > 0 && wanted.test(frame.name);
      frame.group.classList.toggle("match", hit);
      if (hit) found.push(frame);
    }
    // A match inside of a match takes no further time: count what they cover.
    found.sort((a, b) => a.start - b.start || b.share - a.share);
    let covered = 0;
    let reached = -1;
    for (const frame of found) {
      if (frame.start < reached - precision) continue;
      covered += frame.share;
      reached = frame.start + frame.share;
    }
    matched.textContent = wanted === null ? "" : "matched: " + (100 * covered).toFixed(1) + " %";
  }
  input.addEventListener("input", search);

  for (const frame of frames) {
    frame.group.addEventListener("click", () => zoom(frame));
    frame.group.addEventListener("mouseenter", () => tell(frame));
    frame.group.addEventListener("mouseleave", () => tell(null));
  }
  document.addEventListener("keydown", function (event) {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "f") {
      event.preventDefault();
      input.focus();
      input.select();
    } else if (event.key === "Escape") {
      input.value = "";
      search();
      zoom({ level: 0, start: 0, share: 1 });
    }
  });

  function fit() {
    const width = Math.max(700, document.documentElement.clientWidth || drawn + 2 * pad);
    const height = Number(svg.dataset.height);
    plot = width - 2 * pad;
    svg.setAttribute("width", width);
    svg.setAttribute("viewBox", "0 0 " + width + " " + height);
    box.setAttribute("x", width - pad - 210);
    reset.setAttribute("x", width - pad - 225);
    matched.setAttribute("x", width - pad);
    render();
  }
  window.addEventListener("resize", fit);
  fit();
})();
