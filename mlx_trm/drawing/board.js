"use strict";
// Draws boards and the course of Q as SVG. Everything foreign is put in as text, never as markup.
const drawing = (function () {
  const CELL = 20, GIVEN = 1, CHANGED = 2, WRONG = 4;
  // Below this share of the board's highest confidence a cell gets a bar. How high that is depends
  // on the loss that a model was trained with.
  const LESS_SURE = 0.9;

  function make(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function inkOn(color) {
    const part = (at) => parseInt(color.slice(at, at + 2), 16);
    return 299 * part(1) + 587 * part(3) + 114 * part(5) > 128000 ? "#000000" : "#ffffff";
  }

  function drawCell(svg, board, at, sure, most) {
    const x = (at % board.w) * CELL, y = Math.floor(at / board.w) * CELL;
    const marks = Number(board.m[at]), symbol = board.s[at];
    const color = board.c ? board.p[board.c[at]] : null;
    const place = { x: x, y: y, width: CELL, height: CELL };
    const inner = { x: x + 2, y: y + 2, width: CELL - 4, height: CELL - 4 };
    if (color) svg.append(make("rect", { ...place, fill: color }));
    else svg.append(make("rect", { ...place, class: marks & CHANGED ? "changed-cell" : "paper" }));
    if (marks & WRONG) {
      if (color) svg.append(make("rect", { ...inner, class: "wrong-halo" }));
      svg.append(make("rect", { ...inner, class: color ? "wrong-ring on-color" : "wrong-ring" }));
    }
    if (color && marks & CHANGED) {
      const size = CELL * 0.45;
      svg.append(make("path", { d: `M${x} ${y}h${size}l${-size} ${size}z`, class: "corner" }));
    }
    if (sure < LESS_SURE * most && !(marks & GIVEN)) {
      const bar = { x: x + 2, y: y + CELL - 4, height: 2.4 };
      svg.append(make("rect", { ...bar, width: CELL - 4, class: color ? "track on-color" : "track" }));
      svg.append(make("rect", { ...bar, width: ((CELL - 4) * sure) / 100, class: "sure" }));
    }
    if (!symbol) return;
    const look = marks & GIVEN ? "given" : marks & WRONG ? "bad" : "";
    const text = make("text", {
      x: x + CELL / 2, y: y + CELL * 0.75, class: look,
      "font-size": symbol.length < 2 ? CELL * 0.7 : (CELL * 1.1) / symbol.length,
    }, symbol);
    if (color) text.style.fill = inkOn(color);
    svg.append(text);
  }

  // confidence: two digits a cell, per cent; nothing where it is not known.
  function drawBoard(board, label, confidence) {
    const width = board.w * CELL, height = board.h * CELL;
    const svg = make("svg", {
      viewBox: `-1 -1 ${width + 2} ${height + 2}`, role: "img", "aria-label": `${label}: ${board.t}`,
    });
    const sure = (confidence || "").match(/../g) || [];
    const most = Math.max(0, ...sure);
    for (let at = 0; at < board.w * board.h; at++) drawCell(svg, board, at, Number(sure[at]), most);
    for (const thick of [false, true]) {
      for (const [count, box, down] of [[board.h, board.b[0], false], [board.w, board.b[1], true]]) {
        for (let at = 0; at <= count; at++) {
          if (thick !== (at === 0 || at === count || (box > 0 && at % box === 0))) continue;
          const d = down ? `M${at * CELL} 0v${height}` : `M0 ${at * CELL}h${width}`;
          svg.append(make("path", { d: d, class: board.c ? "grid" : thick ? "thick" : "thin" }));
        }
      }
    }
    return svg;
  }

  // now: the take and the step that are shown.
  function drawBeliefs(takes, now) {
    const svg = make("svg", { viewBox: "0 0 240 96", role: "img", "aria-label": "Q by step" });
    const longest = Math.max(...takes.map((take) => take.frames.length), 2);
    const x = (number) => 24 + ((number - 1) / (longest - 1)) * 206;
    const y = (belief) => 78 - belief * 66;
    for (const [belief, name] of [[0, "0"], [0.5, ""], [1, "1"]]) {
      svg.append(make("path", { d: `M24 ${y(belief)}h206`, class: "axis" }));
      if (name) svg.append(make("text", { x: 14, y: y(belief) + 3 }, name));
    }
    svg.append(make("text", { x: 24, y: 92 }, "1"), make("text", { x: 228, y: 92 }, String(longest)));
    const order = takes.map((_, at) => at).filter((at) => at !== now.take);
    for (const at of [...order, now.take]) {
      let d = "", pen = "M";
      for (const frame of takes[at].frames) {
        if (frame.q === null) { pen = "M"; continue; }
        d += `${pen}${x(frame.step).toFixed(1)} ${y(frame.q).toFixed(1)}`;
        pen = "L";
      }
      if (d) svg.append(make("path", { d: d, class: at === now.take ? "own" : "other" }));
    }
    const frame = takes[now.take].frames[now.step - 1];
    if (frame && frame.q !== null) {
      svg.append(make("circle", { cx: x(frame.step), cy: y(frame.q), r: 4.5, class: "now" }));
    }
    return svg;
  }

  const countWrong = (board) => [...board.m].filter((mark) => Number(mark) & WRONG).length;

  return { make, drawBoard, drawBeliefs, countWrong };
})();
