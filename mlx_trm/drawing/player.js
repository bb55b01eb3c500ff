"use strict";
// The player in player.html: sliders over the steps and rollouts of puzzles, which may still be
// coming in. On a page that has other things to type into it answers keys only where it is focused.
function makePlayer(keysFrom) {
  const byId = (id) => document.getElementById(id);
  const NOTHING = { rollout: 0, frames: [], chosen: false };
  const state = { scenes: [], scene: 0, take: 0, step: 0, timer: null, follows: false };
  const takes = () => state.scenes[state.scene].takes;
  const take = () => takes()[state.take] || NOTHING;

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
    const wrong = drawing.countWrong(frame.board);
    const parts = [frame.q === null ? "Q is no number" : `Q ${frame.q.toFixed(3)}`,
      cells(frame.changed, "changed")];
    if (wrong) parts.push(cells(wrong, "wrong"));
    said.append(parts.join(", "));
  }

  function show() {
    const scene = state.scenes[state.scene], now = take();
    state.step = Math.min(state.step, now.frames.length);
    const frame = now.frames[state.step - 1];
    byId("name").textContent = scene.title;
    byId("board").replaceChildren(frame
      ? drawing.drawBoard(frame.board, `answer after step ${frame.step}`, frame.k)
      : drawing.drawBoard(scene.puzzle, "puzzle"));
    byId("puzzle").replaceChildren(drawing.drawBoard(scene.puzzle, "puzzle"));
    byId("solved").hidden = scene.solution === null;
    byId("solution").replaceChildren();
    if (scene.solution) byId("solution").append(drawing.drawBoard(scene.solution, "solution"));
    byId("chart").replaceChildren();
    if (now.frames.length) byId("chart").append(drawing.drawBeliefs(takes(), state));
    byId("step").max = now.frames.length;
    byId("step").value = state.step;
    byId("steps").textContent = `${state.step} of ${now.frames.length}`;
    byId("rollout").max = takes().length;
    byId("rollout").value = state.take + 1;
    byId("rollouts").textContent =
      `${now.rollout + 1} of ${takes().length}${now.chosen ? ", the answer" : ""}`;
    for (const node of document.querySelectorAll(".takes")) node.hidden = takes().length < 2;
    byId("unsure").hidden = !frame || !frame.k;
    say(frame);
  }

  function stop() {
    if (state.timer !== null) clearInterval(state.timer);
    state.timer = null;
    state.follows = false;
    byId("play").textContent = "Play";
  }

  function play() {
    if (state.timer !== null) { stop(); return; }
    stop();
    if (state.step >= take().frames.length) state.step = 0;
    byId("play").textContent = "Pause";
    show();
    state.timer = setInterval(function () {
      state.step += 1;
      show();
      if (state.step >= take().frames.length) stop();
    }, 700);
  }

  function go(step) {
    stop();
    state.step = Math.max(0, Math.min(take().frames.length, step));
    show();
  }

  function choose(number) {
    stop();
    state.take = Math.max(0, Math.min(takes().length - 1, number));
    show();
  }

  function open(scene) {
    stop();
    state.scene = scene;
    state.take = Math.max(0, takes().findIndex((each) => each.chosen));
    state.step = take().frames.length;
    show();
  }

  function load(scenes) {
    stop();
    state.scenes = scenes;
    byId("scene").replaceChildren(...scenes.map(function (scene, at) {
      const option = document.createElement("option");
      option.textContent = `${at + 1}: ${scene.title}`;
      return option;
    }));
    for (const node of document.querySelectorAll(".scenes")) node.hidden = scenes.length < 2;
    open(0);
  }

  // Steps that come in are shown as they come, until somebody looks at another one.
  function follow(scene) {
    load([scene]);
    state.follows = true;
  }

  function add(rollout, frame) {
    let at = takes().findIndex((each) => each.rollout === rollout);
    if (at < 0) {
      at = takes().push({ rollout: rollout, frames: [], chosen: false }) - 1;
      if (state.follows) state.take = at;
    }
    takes()[at].frames.push(frame);
    if (state.follows && state.take === at) state.step = frame.step;
    show();
  }

  function end(rollout) {
    for (const each of takes()) each.chosen = each.rollout === rollout;
    if (state.follows) open(state.scene); else show();
  }

  byId("step").addEventListener("input", (event) => go(Number(event.target.value)));
  byId("rollout").addEventListener("input", (event) => choose(Number(event.target.value) - 1));
  byId("scene").addEventListener("change", (event) => open(event.target.selectedIndex));
  byId("play").addEventListener("click", play);
  byId("back").addEventListener("click", () => go(state.step - 1));
  byId("on").addEventListener("click", () => go(state.step + 1));
  keysFrom.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    if (!state.scenes.length) return;
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
  return { load, go, choose, follow, add, end };
}
