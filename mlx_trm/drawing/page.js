"use strict";
// Shows the puzzles in #data. Everything foreign is put in as text, never as markup.
(function () {
  const scenes = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const CELL = 20, GIVEN = 1, CHANGED = 2, WRONG = 4;
  const state = { scene: 0, take: 0, step: 0, timer: null };

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

  function drawCell(svg, board, at) {
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
    if (!symbol) return;
    const look = marks & GIVEN ? "given" : marks & WRONG ? "bad" : "";
    const text = make("text", {
      x: x + CELL / 2, y: y + CELL * 0.75, class: look,
      "font-size": symbol.length < 2 ? CELL * 0.7 : (CELL * 1.1) / symbol.length,
    }, symbol);
    if (color) text.style.fill = inkOn(color);
    svg.append(text);
  }

  function drawBoard(board, label) {
    const width = board.w * CELL, height = board.h * CELL;
    const svg = make("svg", {
      viewBox: `-1 -1 ${width + 2} ${height + 2}`, role: "img", "aria-label": `${label}: ${board.t}`,
    });
    for (let at = 0; at < board.w * board.h; at++) drawCell(svg, board, at);
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

  function drawChart(scene) {
    const svg = make("svg", { viewBox: "0 0 240 96", role: "img", "aria-label": "Q by step" });
    const longest = Math.max(...scene.takes.map((take) => take.frames.length), 2);
    const x = (number) => 24 + ((number - 1) / (longest - 1)) * 206;
    const y = (belief) => 78 - belief * 66;
    for (const [belief, name] of [[0, "0"], [0.5, ""], [1, "1"]]) {
      svg.append(make("path", { d: `M24 ${y(belief)}h206`, class: "axis" }));
      if (name) svg.append(make("text", { x: 14, y: y(belief) + 3 }, name));
    }
    svg.append(make("text", { x: 24, y: 92 }, "1"), make("text", { x: 228, y: 92 }, String(longest)));
    const order = scene.takes.map((_, at) => at).filter((at) => at !== state.take);
    for (const at of [...order, state.take]) {
      let d = "", pen = "M";
      for (const frame of scene.takes[at].frames) {
        if (frame.q === null) { pen = "M"; continue; }
        d += `${pen}${x(frame.step).toFixed(1)} ${y(frame.q).toFixed(1)}`;
        pen = "L";
      }
      if (d) svg.append(make("path", { d: d, class: at === state.take ? "own" : "other" }));
    }
    const now = scene.takes[state.take].frames[state.step - 1];
    if (now && now.q !== null) {
      svg.append(make("circle", { cx: x(now.step), cy: y(now.q), r: 4.5, class: "now" }));
    }
    return svg;
  }

  function cells(number, what) { return `${number} ${number === 1 ? "cell" : "cells"} ${what}`; }

  function say(frame) {
    const said = byId("said");
    said.replaceChildren();
    if (!frame) { said.textContent = "The puzzle as it was given."; return; }
    if (frame.correct !== null) {
      const verdict = document.createElement("b");
      verdict.className = verdict.textContent = frame.correct ? "right" : "wrong";
      said.append(verdict, ", ");
    }
    const wrong = [...frame.board.m].filter((mark) => Number(mark) & WRONG).length;
    const parts = [frame.q === null ? "Q is no number" : `Q ${frame.q.toFixed(3)}`,
      cells(frame.changed, "changed")];
    if (wrong) parts.push(cells(wrong, "wrong"));
    said.append(parts.join(", "));
  }

  function show() {
    const scene = scenes[state.scene], take = scene.takes[state.take];
    state.step = Math.min(state.step, take.frames.length);
    const frame = take.frames[state.step - 1];
    byId("name").textContent = scene.title;
    byId("board").replaceChildren(frame
      ? drawBoard(frame.board, `answer after step ${frame.step}`)
      : drawBoard(scene.puzzle, "puzzle"));
    byId("puzzle").replaceChildren(drawBoard(scene.puzzle, "puzzle"));
    byId("solved").hidden = scene.solution === null;
    byId("solution").replaceChildren();
    if (scene.solution) byId("solution").append(drawBoard(scene.solution, "solution"));
    byId("chart").replaceChildren(drawChart(scene));
    byId("step").max = take.frames.length;
    byId("step").value = state.step;
    byId("steps").textContent = `${state.step} of ${take.frames.length}`;
    byId("rollout").max = scene.takes.length;
    byId("rollout").value = state.take + 1;
    byId("rollouts").textContent =
      `${take.rollout + 1} of ${scene.takes.length}${take.chosen ? ", the answer" : ""}`;
    for (const node of document.querySelectorAll(".takes")) node.hidden = scene.takes.length < 2;
    say(frame);
  }

  function stop() {
    if (state.timer !== null) clearInterval(state.timer);
    state.timer = null;
    byId("play").textContent = "Play";
  }

  function play() {
    if (state.timer !== null) { stop(); return; }
    const last = () => scenes[state.scene].takes[state.take].frames.length;
    if (state.step >= last()) state.step = 0;
    byId("play").textContent = "Pause";
    show();
    state.timer = setInterval(function () {
      state.step += 1;
      show();
      if (state.step >= last()) stop();
    }, 700);
  }

  function go(step) {
    stop();
    const last = scenes[state.scene].takes[state.take].frames.length;
    state.step = Math.max(0, Math.min(last, step));
    show();
  }

  function choose(take) {
    stop();
    state.take = Math.max(0, Math.min(scenes[state.scene].takes.length - 1, take));
    show();
  }

  function open(scene) {
    stop();
    state.scene = scene;
    state.take = Math.max(0, scenes[scene].takes.findIndex((take) => take.chosen));
    state.step = scenes[scene].takes[state.take].frames.length;
    show();
  }

  byId("step").addEventListener("input", (event) => go(Number(event.target.value)));
  byId("rollout").addEventListener("input", (event) => choose(Number(event.target.value) - 1));
  byId("scene").addEventListener("change", (event) => open(event.target.selectedIndex));
  byId("play").addEventListener("click", play);
  byId("back").addEventListener("click", () => go(state.step - 1));
  byId("on").addEventListener("click", () => go(state.step + 1));
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const onButton = event.target.tagName === "BUTTON";
    const keys = {
      ArrowLeft: () => go(state.step - 1), ArrowRight: () => go(state.step + 1),
      ArrowUp: () => choose(state.take - 1), ArrowDown: () => choose(state.take + 1),
      Home: () => go(0), End: () => go(Infinity),
    };
    if (!onButton) keys[" "] = play; // a button that is focused answers the space bar itself
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  scenes.forEach(function (scene, at) {
    const option = document.createElement("option");
    option.textContent = `${at + 1}: ${scene.title}`;
    byId("scene").append(option);
  });
  for (const node of document.querySelectorAll(".scenes")) node.hidden = scenes.length < 2;
  open(0);
  // page.html#rollout=2&step=3 opens it there.
  const asked = new URLSearchParams(window.location.hash.slice(1));
  if (asked.has("rollout")) choose((Number(asked.get("rollout")) || 1) - 1);
  if (asked.has("step")) go(Number(asked.get("step")) || 0);
})();
