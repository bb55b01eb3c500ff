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

function makeGrid(size, count, given, makeCell) {
  const cells = [], names = [];
  const grid = element("div", { class: "grid-editor", role: "group" });
  grid.style.setProperty("--size", size);
  for (let at = 0; at < count; at++) {
    names.push(given.length ? given[at] : `row ${Math.floor(at / size) + 1} column ${(at % size) + 1}`);
    cells.push(makeCell(at, names[at]));
    grid.append(cells[at]);
  }
  grid.addEventListener("keydown", moveBetween(cells, size));
  return { grid, cells, names };
}

function digitsEditor(about, changed, pasted) {
  const size = about.size, [high, wide] = about.boxes, symbols = about.symbols;
  const { grid, cells } = makeGrid(size, size * size, [], function (at, place) {
    const row = Math.floor(at / size), column = at % size;
    const lines = (column % wide === 0 && column ? " left" : "") + (row % high === 0 && row ? " top" : "");
    return element("input", {
      class: "digit" + lines, type: "text", inputmode: size < 10 ? "numeric" : "text",
      "aria-label": place, autocomplete: "off", spellcheck: false,
    });
  });
  grid.setAttribute("aria-label", about.label);
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

// A grid whose cells hold symbols: clicks and keys are tools, which the server describes.
function cellsEditor(about, changed, pasted) {
  const { rows, columns, looks, tools, choices, papers } = about, blank = Object.keys(looks)[0];
  let tool = tools[0], paint = null;
  let symbols = Array(rows * columns).fill(blank);
  const { grid, cells, names } = makeGrid(columns, rows * columns, about.names, (at) => element("button", {
    type: "button", class: "cell", tabindex: at ? "-1" : "0",
  }));
  grid.setAttribute("aria-label", `${about.label}; arrows move, keys draw`);
  grid.classList.add("cells");
  const selects = choices.map(function (choice) {
    const select = element("select", {});
    select.append(...choice.words.map(([word, told]) => element("option", { value: word }, told)));
    select.addEventListener("change", () => { drawAll(); tell(); });
    return select;
  });
  const pointed = choices.findIndex((choice) => tools.some((each) => each.points === choice.name));
  function draw(at) {
    const look = looks[symbols[at]], cell = cells[at], asked = pointed >= 0 && selects[pointed].value === names[at];
    const paper = papers[(Math.floor(at / columns) + (at % columns)) % papers.length];
    cell.classList.toggle("asked", asked);
    cell.classList.toggle("disc", look.disc);
    cell.style.setProperty("--paper-below", look.fill || paper);
    cell.style.setProperty("--ink-here", look.ink);
    cell.textContent = look.text;
    cell.setAttribute("aria-label", `${names[at]}: ${look.name}${asked ? `, ${choices[pointed].name}` : ""}`);
  }
  const drawAll = () => symbols.forEach((_, at) => draw(at));
  function put(at, symbol, clears) {
    if (symbols[at] === symbol) return;
    symbols[at] = symbol;
    if (symbol in looks && Object.keys(clears).length) {
      symbols = symbols.map((each, other) => (other !== at && each in clears ? clears[each] : each));
      drawAll();
    } else draw(at);
  }
  function use(at, used, turn) {
    if (used.points) {
      const select = selects[pointed], same = select.value === names[at];
      select.value = same ? choices[pointed].words[0][0] : names[at];
      drawAll();
    } else {
      const now = symbols[at];
      paint = turn || !used.put ? used.turns[now] || used.put || now : used.put;
      put(at, paint, used.clears);
    }
    tell();
  }
  function tell() {
    const lines = [];
    for (let at = 0; at < symbols.length; at += columns) lines.push(symbols.slice(at, at + columns).join(""));
    changed([lines.join("/"), ...selects.map((select) => select.value)].join(" ").trimEnd());
  }
  grid.addEventListener("pointerdown", function (event) {
    const at = cells.indexOf(event.target);
    paint = null;
    if (at < 0 || event.button) return;
    if (event.target.hasPointerCapture(event.pointerId)) event.target.releasePointerCapture(event.pointerId);
    use(at, tool, true);
    if (!tool.drags) paint = null;
  });
  grid.addEventListener("pointerover", function (event) {
    const at = cells.indexOf(event.target);
    if (paint === null || at < 0 || !event.buttons) return;
    put(at, paint, tool.clears);
    tell();
  });
  window.addEventListener("pointerup", () => { paint = null; });
  grid.addEventListener("keydown", function (event) {
    const at = cells.indexOf(event.target);
    const plain = event.key === " " || event.key === "Enter";
    const used = plain ? tool : tools.find((each) => each.keys.includes(event.key));
    if (at < 0 || !used || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    use(at, used, plain);
    paint = null;
  });
  grid.addEventListener("paste", function (event) {
    event.preventDefault();
    pasted(event.clipboardData.getData("text"));
  });
  const palette = element("div", { class: "tools", role: "radiogroup", "aria-label": "What a click draws" });
  for (const each of tools) {
    const radio = element("input", { type: "radio", name: "tool", value: each.name, checked: each === tool });
    radio.addEventListener("change", () => { tool = each; });
    const sign = each.put && looks[each.put].text;
    const shown = sign ? element("span", { class: "sign", title: each.name, "aria-label": each.name }, sign) : ` ${each.name}`;
    palette.append(element("label", { class: sign ? "signed" : "" }, radio, shown));
  }
  const more = element("div", { class: "tools" });
  choices.forEach((choice, at) => more.append(element("label", {}, `${choice.name} `, selects[at])));
  function set(text) {
    const [board, ...words] = text.trim().split(/ +/), read = [...board.replaceAll("/", "")];
    if (read.length !== symbols.length) return;
    symbols = read.map((symbol) => (symbol in looks ? symbol : blank));
    selects.forEach(function (select, at) { select.value = words[at] || choices[at].words[0][0]; });
    drawAll();
  }
  set(about.empty);
  return { node: element("div", {}, palette, grid, more), set, empty: about.empty };
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
  if (model.editor.kind === "cells") return cellsEditor(model.editor, changed, pasted);
  if (model.editor.kind === "names" && model.names.length) return namesEditor(model.names, changed);
  return textEditor();
}
