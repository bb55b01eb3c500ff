"use strict";
// The page that solves. The text is the puzzle; grids show and change it, and the server reads it.
(async function () {
  const player = makePlayer(byId("shown"));
  let models = [], model = null, editor = null, waiting = null, reading = 0, running = null;

  function setText(text) {
    // One line of a board with / between its rows; words behind it stand in a line of their own.
    const rows = text.replaceAll("/", "/\n").replace(/^([^ ]*\/[^ ]*) /, "$1\n");
    byId("text").value = model.editor.kind === "digits" ? inRows(text) : rows;
  }

  function inRows(text) {
    const size = model.editor.size, rows = [];
    if (text.length !== size * size) return text;
    for (let at = 0; at < text.length; at += size) rows.push(text.slice(at, at + size));
    return rows.join("\n");
  }

  const puzzle = () => byId("text").value;

  // Let the server read what was typed; a grid is only drawn anew where it was not what was typed.
  async function read(redraw) {
    const number = ++reading, asked = puzzle();
    if (!asked.trim()) { showMessage(""); return; }
    try {
      const found = await askJson("/api/read", { model: model.name, puzzle: asked });
      if (number !== reading || puzzle() !== asked) return; // what was typed since is read soon
      if (redraw) editor.set(model.names.includes(puzzle()) ? puzzle() : found.typed, found.drawing, found.demonstrations);
      showMessage(found.problem);
    } catch (error) {
      if (number === reading) showMessage(error.message);
    }
  }

  function readSoon(redraw) {
    clearTimeout(waiting);
    waiting = setTimeout(() => read(redraw), 250);
  }

  function start(text) {
    setText(text);
    if (text) editor.set(text);
    read(true);
  }

  function choose(name) {
    model = models.find((each) => each.name === name);
    byId("about").textContent = `${model.summary}.`;
    byId("hint").textContent = model.editor.hint;
    const own = model.settings;
    byId("own").textContent = `as suits the model: ${own.rollouts === 1 ? "one run" : `up to ${own.rollouts} runs`} ` +
      `of ${own.steps} steps` + (own.halt === "rules" ? ", until the rules accept the answer" : "");
    byId("runs-option").hidden = own.rollouts === 1 && !model.symmetries;
    editor = makeEditor(model, function (text) {
      setText(text);
      readSoon(model.editor.kind === "names");
    }, function (text) {
      byId("text").value = text;
      read(true);
    });
    byId("editor").replaceChildren(editor.node);
    showMessage("");
    example();
  }

  async function example() {
    const asked = model.name;
    try {
      const found = await askJson(`/api/example?model=${encodeURIComponent(asked)}`);
      if (model.name === asked) start(found.puzzle);
    } catch (_) {
      start(editor.empty); // a task without examples
    }
  }

  function settings() {
    const asked = {};
    const [steps, rollouts] = ["most-steps", "most-rollouts"].map((id) => Number(byId(id).value));
    if (document.querySelector("[name=way]:checked").value === "plain") {
      Object.assign(asked, { rollouts: 1, halt: "fixed", symmetries: false, select: "q" });
    } else if (rollouts) asked.rollouts = rollouts;
    if (steps) asked.steps = steps;
    return asked;
  }

  function describe(found) {
    const cells = found.accepted === null ? "" : found.accepted ? "accepted by the rules" : "not accepted by the rules";
    const right = found.correct === null || found.accepted !== null ? "" : found.correct ? "right" : "wrong";
    const runs = `${found.steps} ${found.steps === 1 ? "step" : "steps"} in ${found.rollouts} ${found.rollouts === 1 ? "run" : "runs"}`;
    const belief = found.q === null ? "" : `Q ${found.q.toFixed(3)}`;
    return [cells || right, found.remark, belief, runs, `${found.seconds.toFixed(1)} s`].filter(Boolean).join(", ");
  }

  function finish(state) {
    running = null;
    byId("stop").hidden = true;
    byId("solve").disabled = false;
    byId("state").textContent = state;
  }

  async function solve(event) {
    event.preventDefault();
    if (running) return;
    const mine = running = new AbortController();
    showMessage("");
    byId("result").textContent = "";
    byId("solve").disabled = true;
    byId("stop").hidden = false;
    byId("state").textContent = "sent";
    let over = false;
    const takes = {
      waiting: (said) => { byId("state").textContent = said.ahead ? `waiting, ${said.ahead} before it` : "waiting"; },
      begin: function (said) {
        byId("state").textContent = "solving";
        byId("shown").hidden = false;
        player.follow({ ...said.drawing, takes: [] });
        byId("shown").focus({ preventScroll: true }); // so that its keys work
        const below = byId("shown").getBoundingClientRect().top > 0.6 * window.innerHeight;
        if (below) byId("shown").scrollIntoView();
      },
      step: (said) => player.add(said.rollout, said.frame),
      done: function (said) {
        over = true;
        player.end(said.rollout);
        const verdict = element("b", { class: said.correct ? "right" : said.correct === false ? "wrong" : "" },
          said.correct === null ? "Answered" : said.correct ? "Solved" : "Not solved");
        byId("result").replaceChildren(verdict, `: ${describe(said)}`);
      },
      error: (said) => { over = true; showMessage(said.error); },
    };
    try {
      const body = { model: model.name, puzzle: puzzle(), draw: true, ...settings() };
      await askEvents("/api/solve", body, mine.signal, (name, said) => takes[name](said));
      if (!over) showMessage("the server has left before the end; is it still running?");
      finish("");
    } catch (error) {
      const stopped = error.name === "AbortError";
      if (!stopped) showMessage(error.message);
      finish(stopped ? "stopped" : "");
    }
  }

  byId("model").addEventListener("change", (event) => choose(event.target.value));
  byId("text").addEventListener("input", () => readSoon(true));
  byId("example").addEventListener("click", example);
  byId("clear").addEventListener("click", () => start(editor.empty));
  byId("ask").addEventListener("submit", solve);
  byId("stop").addEventListener("click", () => running && running.abort());
  try {
    models = (await askJson("/api/models")).models;
    byId("model").append(...models.map((each) => element("option", { value: each.name }, each.name)));
    const asked = new URLSearchParams(window.location.hash.slice(1)).get("model");
    const first = models.some((each) => each.name === asked) ? asked : models[0].name;
    byId("model").value = first;
    choose(first);
  } catch (error) { showMessage(error.message); }
})();
