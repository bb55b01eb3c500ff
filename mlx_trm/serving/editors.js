"use strict";
// Grids to type puzzles into. Each has set(text), with text as the server writes it, and tells
// what was typed as text. Cells are moved between by arrow keys.
function moveBetween(cells, size) {
  return function (event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -size, ArrowDown: size };
    const at = cells.indexOf(event.target);
    if (at < 0 || !(event.key in steps)) return;
    const next = at + steps[event.key];
    const sameRow = Math.floor(next / size) === Math.floor(at / size);
    event.preventDefault();
    if (next < 0 || next >= cells.length || (Math.abs(steps[event.key]) === 1 && !sameRow)) return;
    cells[next].focus();
    if (cells[next].select) cells[next].select();
  };
}

function makeGrid(size, makeCell) {
  const cells = [];
  const grid = element("div", { class: "grid-editor", role: "group" });
  grid.style.setProperty("--size", size);
  for (let at = 0; at < size * size; at++) {
    const place = `row ${Math.floor(at / size) + 1} column ${(at % size) + 1}`;
    cells.push(makeCell(at, place));
    grid.append(cells[at]);
  }
  grid.addEventListener("keydown", moveBetween(cells, size));
  return { grid, cells };
}

function digitsEditor(about, changed, pasted) {
  const size = about.size, [high, wide] = about.boxes, symbols = about.symbols;
  const { grid, cells } = makeGrid(size, function (at, place) {
    const row = Math.floor(at / size), column = at % size;
    const lines = (column % wide === 0 && column ? " left" : "") + (row % high === 0 && row ? " top" : "");
    return element("input", {
      class: "digit" + lines, type: "text", inputmode: size < 10 ? "numeric" : "text",
      "aria-label": place, autocomplete: "off", spellcheck: false,
    });
  });
  grid.setAttribute("aria-label", "Sudoku, a digit a cell");
  grid.classList.add("digits");
  const tell = () => changed(cells.map((cell) => cell.value || ".").join(""));
  grid.addEventListener("focusin", (event) => event.target.select && event.target.select());
  grid.addEventListener("input", function (event) {
    const cell = event.target, typed = cell.value.trim().slice(-1);
    cell.value = symbols.includes(typed) ? typed : "";
    const at = cells.indexOf(cell);
    if (cell.value && at + 1 < cells.length) cells[at + 1].focus();
    tell();
  });
  grid.addEventListener("keydown", function (event) {
    const at = cells.indexOf(event.target);
    if (event.key !== "Backspace" || event.target.value || at < 1) return;
    event.preventDefault();
    cells[at - 1].value = "";
    cells[at - 1].focus();
    tell();
  });
  grid.addEventListener("paste", function (event) {
    const text = event.clipboardData.getData("text");
    if (text.trim().length < 2) return;
    event.preventDefault();
    pasted(text);
  });
  function set(text) {
    cells.forEach((cell, at) => { cell.value = symbols.includes(text[at]) ? text[at] : ""; });
  }
  return { node: grid, set, empty: ".".repeat(size * size) };
}

function mazeEditor(about, changed) {
  const size = about.size, names = { "#": "wall", ".": "open", S: "start", G: "goal" };
  let tool = "#", drags = false;
  let symbols = Array(size * size).fill(".");
  const { grid, cells } = makeGrid(size, (at) => element("button", {
    type: "button", class: "maze-cell", tabindex: at ? "-1" : "0",
  }));
  grid.setAttribute("aria-label", "Maze; arrows move, W O S G draw");
  grid.classList.add("maze");
  function draw(at) {
    const place = `row ${Math.floor(at / size) + 1} column ${(at % size) + 1}`;
    cells[at].className = `maze-cell ${names[symbols[at]]}`;
    cells[at].textContent = "SG".includes(symbols[at]) ? symbols[at] : "";
    cells[at].setAttribute("aria-label", `${place}: ${names[symbols[at]]}`);
  }
  function put(at, symbol) {
    if (symbols[at] === symbol) return;
    if (symbol === "S" || symbol === "G") {
      symbols.forEach((each, other) => { if (each === symbol) { symbols[other] = "."; draw(other); } });
    }
    symbols[at] = symbol;
    draw(at);
  }
  function tell() {
    const rows = [];
    for (let at = 0; at < size * size; at += size) rows.push(symbols.slice(at, at + size).join(""));
    changed(rows.join("/"));
  }
  let paint = tool;
  grid.addEventListener("pointerdown", function (event) {
    const at = cells.indexOf(event.target);
    if (at < 0) return;
    paint = tool === "#" && symbols[at] === "#" ? "." : tool; // a click on a wall takes it away
    drags = tool === "#" || tool === ".";
    if (event.target.hasPointerCapture(event.pointerId)) event.target.releasePointerCapture(event.pointerId);
    put(at, paint);
    tell();
  });
  grid.addEventListener("pointerover", function (event) {
    const at = cells.indexOf(event.target);
    if (!drags || at < 0 || !event.buttons) return;
    put(at, paint);
    tell();
  });
  window.addEventListener("pointerup", () => { drags = false; });
  grid.addEventListener("keydown", function (event) {
    const at = cells.indexOf(event.target);
    const keys = { w: "#", o: ".", s: "S", g: "G", " ": tool, Enter: tool };
    if (at < 0 || !(event.key in keys) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    put(at, keys[event.key]);
    tell();
  });
  const tools = element("div", { class: "tools", role: "radiogroup", "aria-label": "What a click draws" });
  for (const symbol in names) {
    const radio = element("input", { type: "radio", name: "tool", value: symbol, checked: symbol === tool });
    radio.addEventListener("change", () => { tool = symbol; });
    tools.append(element("label", {}, radio, ` ${names[symbol]}`));
  }
  function set(text) {
    symbols = [...text.replaceAll("/", "")].map((symbol) => (symbol in names ? symbol : "."));
    symbols.forEach((_, at) => draw(at));
  }
  const blank = Array(size).fill(".".repeat(size));
  blank[0] = "S" + blank[0].slice(1);
  blank[size - 1] = blank[size - 1].slice(1) + "G";
  return { node: element("div", {}, tools, grid), set, empty: blank.join("/") };
}

// A puzzle, and the pairs that show what it asks for.
function showPuzzle(place, drawn, demonstrations) {
  const captioned = (text, ...boards) =>
    element("figure", {}, element("figcaption", {}, text), element("div", { class: "pair" }, ...boards));
  place.replaceChildren();
  if (!drawn) return;
  const board = drawing.drawBoard(drawn, "puzzle"), pairs = demonstrations || [];
  place.append(pairs.length ? captioned("The puzzle", board) : board);
  pairs.forEach(function (pair, at) {
    const name = `Demonstration ${at + 1}`;
    const [given, answer] = [pair.puzzle, pair.answer].map((each, side) => drawing.drawBoard(each, `${name}, ${side ? "answer" : "puzzle"}`));
    place.append(captioned(name, given, element("span", {}, "\u2192"), answer));
  });
}

function namesEditor(names, changed) {
  const select = element("select", { id: "task", size: Math.min(12, Math.max(2, names.length)) });
  for (const name of names) select.append(element("option", { value: name }, name));
  select.addEventListener("change", () => changed(select.value));
  const label = element("label", { for: "task" }, "Tasks of the model's data");
  const preview = element("div", { class: "preview" });
  function set(text, drawn, demonstrations) {
    select.value = text;
    showPuzzle(preview, drawn, demonstrations);
  }
  return { node: element("div", { class: "names" }, element("div", { class: "field" }, label, select), preview), set, empty: "" };
}

function textEditor() {
  const preview = element("div", { class: "preview" });
  function set(_, drawn, demonstrations) {
    showPuzzle(preview, drawn, demonstrations);
  }
  return { node: preview, set, empty: "" };
}

function makeEditor(model, changed, pasted) {
  if (model.editor.kind === "digits") return digitsEditor(model.editor, changed, pasted);
  if (model.editor.kind === "maze") return mazeEditor(model.editor, changed);
  if (model.editor.kind === "names" && model.names.length) return namesEditor(model.names, changed);
  return textEditor();
}
