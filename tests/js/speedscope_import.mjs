// A file becomes what speedscope, the real program, understood of it: for each profile its name, unit, total and the totals of
// its frames, as JSON on stdout. Exit status 1 with the reason on stderr where speedscope refuses the file.
//
// usage: node speedscope_import.mjs FILE
//
// speedscope exports no importer as a module, but its built page runs under jsdom: it takes a file as base64, and Ctrl+S saves
// everything it has parsed in its own evented format, from which the totals are added up here.

import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { JSDOM, VirtualConsole } from "jsdom";

const PATIENCE_MS = 60_000;
const release = path.join(path.dirname(createRequire(import.meta.url).resolve("speedscope/package.json")), "dist", "release");

function fail(reason) {
  process.stderr.write(`${reason}\n`);
  process.exit(1);
}

function bundle() {
  const scripts = readdirSync(release).filter((name) => /^speedscope-.*\.js$/.test(name));
  if (scripts.length !== 1) fail(`expected one speedscope bundle in ${release}, found ${scripts.length}`);
  return readFileSync(path.join(release, scripts[0]), "utf8");
}

/** Self and total of each frame of one evented profile, a frame that calls itself counted once. */
function totals(profile, frames) {
  const rows = frames.map((frame) => ({ name: frame.name, file: frame.file ?? null, line: frame.line ?? null, self: 0, total: 0 }));
  const stack = [];
  let before = profile.startValue;
  for (const event of profile.events) {
    const weight = event.at - before;
    before = event.at;
    if (weight > 0 && stack.length > 0) {
      rows[stack.at(-1)].self += weight;
      for (const index of new Set(stack)) rows[index].total += weight;
    }
    if (event.type === "O") stack.push(event.frame);
    else if (stack.pop() !== event.frame) fail("speedscope saved events that do not balance");
  }
  return { name: profile.name, unit: profile.unit, end: profile.endValue, frames: rows.filter((row) => row.total > 0) };
}

const file = process.argv[2];
const base64 = readFileSync(file).toString("base64");
const complaints = [];
let imported = false;
const consoles = new VirtualConsole();
for (const level of ["log", "info", "warn", "error"]) {
  consoles.on(level, (...words) => {
    const line = words.map(String).join(" ");
    if (/^Importing as/.test(line)) imported = true;
    if (/Failed to load format|Unrecognized format|Error/.test(line)) complaints.push(line);
  });
}

const dom = new JSDOM('<!doctype html><html><head></head><body></body></html>', {
  url: "http://localhost/#localProfilePath=x",
  runScripts: "outside-only",
  pretendToBeVisual: true,
  virtualConsole: consoles,
});
const { window } = dom;
window.matchMedia = () => ({ matches: false, addListener() {}, removeListener() {}, addEventListener() {}, removeEventListener() {} });
window.Element.prototype.scrollIntoView = () => {};
window.TextDecoder = TextDecoder;
window.TextEncoder = TextEncoder;
window.alert = (message) => fail(`speedscope says: ${message}`);

let saved = null;
window.URL.createObjectURL = (blob) => {
  saved = blob;
  return "blob:saved";
};
window.URL.revokeObjectURL = () => {};
window.HTMLAnchorElement.prototype.click = () => {};

function readBlob(blob) {
  return new Promise((resolve, reject) => {
    const reader = new window.FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsText(blob);
  });
}

window.eval(bundle());
const started = Date.now();
window.speedscope.loadFileFromBase64(path.basename(file), base64);
const timer = setInterval(async () => {
  if (complaints.some((line) => /Failed to load format|Unrecognized format/.test(line))) fail(complaints.join("\n"));
  if (Date.now() - started > PATIENCE_MS) fail(`speedscope did not import the file: ${complaints.join("\n") || "no message"}`);
  if (!imported || saved !== null) return;
  // Before the profile is shown the key does nothing, so it is pressed until a file comes.
  window.dispatchEvent(new window.KeyboardEvent("keydown", { key: "s", code: "KeyS", ctrlKey: true, bubbles: true }));
  if (saved === null) return;
  clearInterval(timer);
  const document = JSON.parse(await readBlob(saved));
  const answer = {
    name: document.name ?? null,
    activeProfileIndex: document.activeProfileIndex ?? null,
    profiles: document.profiles.map((profile) => totals(profile, document.shared.frames)),
  };
  process.stdout.write(JSON.stringify(answer), () => process.exit(0));
}, 50);
