// The page: a grid to type into, and what the network thinks of it, step by step.

import { boxShape, conflicts, format, parse } from "./rules.js";

const EXAMPLES = {
  4: ["1.....2..3.....4"],
  9: [
    "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4..",
    "..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9",
    "4.....8.5.3..........7......2.....6.....8.4......1.......6.3.7.5..2.....1.4......",
  ],
};
const $ = (id) => document.getElementById(id);
prepare(); // not awaited: the page works without it
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
let size = 9;
let cells = [];
let puzzle = null; // what is being solved, or was
let steps = [];
let id = 0;
let example = 0;
let ready = false;

/** Let offline.js serve the page, which gives it threads; load it once more for that. */
async function prepare() {
  const service = navigator.serviceWorker;
  // Where it serves the page already, this is what can be had: threads, or one thread.
  if (!service || service.controller || window.crossOriginIsolated) return;
  try {
    await service.register(new URL("./offline.js", import.meta.url));
    await service.ready;
    if (sessionStorage.getItem("again")) return; // it did not help
    sessionStorage.setItem("again", "yes");
    location.reload();
  } catch {
    // No service workers here, as in some private windows: one thread.
  }
}

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

function makeGrid() {
  const [height, width] = boxShape(size);
  $("grid").style.setProperty("--size", size);
  $("grid").replaceChildren();
  cells = [];
  for (let i = 0; i < size * size; i += 1) {
    const cell = document.createElement("input");
    const row = Math.floor(i / size);
    const column = i % size;
    cell.inputMode = "numeric";
    cell.autocomplete = "off";
    cell.maxLength = 1;
    cell.setAttribute("aria-label", `row ${row + 1}, column ${column + 1}`);
    if (column % width === 0 && column) cell.classList.add("left");
    if (row % height === 0 && row) cell.classList.add("top");
    cell.addEventListener("input", () => { edit(i); });
    cell.addEventListener("keydown", (event) => { move(event, i); });
    cell.addEventListener("focus", () => { cell.select(); });
    cell.addEventListener("paste", (event) => {
      const text = event.clipboardData.getData("text");
      if (text.trim().length > 1) { event.preventDefault(); take(text); }
    });
    cells.push(cell);
  }
  $("grid").append(...cells);
}

/** Show digits: givens, and where there is a step its answer with its beliefs. */
function show(step = null) {
  const previous = step ? steps[steps.indexOf(step) - 1] : null;
  const broken = conflicts(step ? step.answer : puzzle, size).cells;
  cells.forEach((cell, i) => {
    const given = puzzle[i] > 0;
    const digit = given ? puzzle[i] : step ? step.answer[i] : 0;
    cell.value = digit || "";
    cell.classList.toggle("given", given);
    cell.classList.toggle("wrong", broken.has(i));
    const before = previous ? previous.answer[i] : 0;
    cell.classList.toggle("changed", Boolean(step) && !given && digit !== before);
    cell.style.setProperty("--sure", step && !given ? step.confidence[i].toFixed(3) : 1);
    cell.title = step && !given ? `confidence ${(100 * step.confidence[i]).toFixed(0)} %` : "";
  });
  for (const chip of $("steps").children) {
    chip.setAttribute("aria-current", String(Boolean(step) && chip.step === step));
  }
}

/** Make what is in the grid a new puzzle; forget the steps of the last one. */
function begin(grid) {
  id += 1;
  worker.postMessage({ id });
  steps = [];
  $("steps").replaceChildren();
  $("stop").disabled = true;
  puzzle = grid;
  $("text").value = format(grid);
  show();
}

function take(text) {
  try {
    begin(parse(text, size));
    say(ready ? "Press Solve." : "Loading the network …");
  } catch (error) {
    say(error.message, "bad");
  }
}

function edit(i) {
  const digit = Number(cells[i].value);
  const grid = [...puzzle];
  grid[i] = Number.isInteger(digit) && digit >= 1 && digit <= size ? digit : 0;
  begin(grid);
  const { texts } = conflicts(grid, size);
  say(texts.length ? `These givens break a rule: ${texts[0]}.` : "", texts.length ? "bad" : "");
}

function move(event, i) {
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -size, ArrowDown: size }[event.key];
  if (by && cells[i + by]) { event.preventDefault(); cells[i + by].focus(); }
  if (event.key === "Enter") solve();
}

function solve() {
  if (!ready) return;
  let grid = puzzle;
  try {
    if ($("text").value.trim()) grid = parse($("text").value, size);
  } catch (error) {
    say(error.message, "bad");
    return;
  }
  begin(grid);
  const { texts } = conflicts(grid, size);
  if (texts.length) {
    say(`These givens break a rule: ${texts[0]}.`, "bad");
    return;
  }
  $("stop").disabled = false;
  say("Thinking …");
  worker.postMessage({ id, puzzle: grid });
}

function addStep(step) {
  steps.push(step);
  const chip = document.createElement("button");
  chip.type = "button";
  chip.step = step;
  chip.textContent = step.rollout > 1 ? `${step.rollout}:${step.step}` : step.step;
  chip.title = `run ${step.rollout}, step ${step.step}; Q ${(100 * step.q).toFixed(1)} %`;
  chip.style.setProperty("--q", step.q.toFixed(3));
  chip.classList.toggle("accepted", step.accepted);
  chip.addEventListener("click", () => { show(step); tell(step); });
  $("steps").append(chip);
  show(step);
  tell(step);
}

function tell(step) {
  const own = step.confidence.filter((_, i) => !puzzle[i]);
  const mean = own.length ? own.reduce((sum, each) => sum + each, 0) / own.length : 1;
  const unsure = Math.min(1, ...own);
  const broken = conflicts(step.answer, size).cells.size;
  const run = step.rollout > 1 ? `Run ${step.rollout} (a symmetric copy), step` : "Step";
  const rules = step.accepted ? "every rule is kept" : broken ? `${broken} cells break a rule` : "not full, or a given is changed";
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  say(
    `${run} ${step.step}: ${rules}. Confidence ${percent(mean)}, least ${percent(unsure)}; `
      + `Q, its belief that it is right, ${percent(step.q)}.`,
    step.accepted ? "good" : "",
  );
}

function finish(data) {
  $("stop").disabled = true;
  if (data.accepted) {
    tell(steps[steps.length - 1]);
    const runs = data.rollout > 1 ? `, ${data.rollout} runs` : "";
    const plural = data.steps > 1 ? "steps" : "step";
    $("status").append(` Solved in ${data.seconds.toFixed(2)} s, ${data.steps} ${plural}${runs}.`);
    $("status").dataset.seconds = data.seconds.toFixed(3);
  } else {
    say(
      `No grid that keeps the rules after ${data.rollout} runs, ${data.steps} steps. The puzzle may `
        + "have no solution.",
      "bad",
    );
  }
}

worker.onmessage = ({ data }) => {
  if (data.kind === "ready") {
    if (data.size !== size) {
      size = data.size;
      makeGrid();
      begin(parse((EXAMPLES[size] || [".".repeat(size * size)])[0], size));
    }
    ready = true;
    $("solve").disabled = false;
    const threads = data.threads > 1 ? `${data.threads} threads` : "one thread";
    $("about").textContent = `${(data.bytes / 1e6).toFixed(1)} MB of network, ready after `
      + `${data.seconds.toFixed(1)} s, ${threads} of WebAssembly`;
    say("Press Solve.");
  } else if (data.kind === "failed" && (data.id === undefined || data.id === id)) {
    $("stop").disabled = true;
    say(`It does not run here: ${data.text}`, "bad");
  } else if (data.id === id && data.kind === "step") {
    addStep(data);
  } else if (data.id === id && data.kind === "done") {
    finish(data);
  }
};
worker.onerror = (event) => { say(`It does not run here: ${event.message || "no worker"}`, "bad"); };

$("form").addEventListener("submit", (event) => { event.preventDefault(); solve(); });
$("stop").addEventListener("click", () => {
  id += 1;
  worker.postMessage({ id });
  $("stop").disabled = true;
  say(`Stopped after ${steps.length} steps.`);
});
$("clear").addEventListener("click", () => {
  begin(Array(size * size).fill(0));
  $("text").value = "";
  say("Type digits, or paste a puzzle.");
  cells[0].focus();
});
$("example").addEventListener("click", () => {
  const known = EXAMPLES[size] || [".".repeat(size * size)];
  example = (example + 1) % known.length;
  take(known[example]);
});
$("text").addEventListener("change", () => { take($("text").value); });

makeGrid();
begin(parse(EXAMPLES[9][0], 9));
say("Loading the network …");
