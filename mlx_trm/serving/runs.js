"use strict";
// The page that follows runs: a list to choose from, what differs, last values, curves.
(function () {
  const COLORS = 8, EVERY = 5000;
  const TITLES = { lr: "learning rate", steps: "supervision steps until halting",
    steps_per_second: "steps per second", peak_memory: "peak memory" };
  let chosen = [], logs = new Map(), stream = null, listed = "";

  function table(head, rows) {
    const cells = (tag, row) => row.map((cell, at) => element(at ? tag : "th", at ? {} : { scope: "row" }, cell === null ? "-" : cell));
    const top = element("tr", {}, ...head.map((cell) => element("th", { scope: "col" }, cell)));
    const body = rows.map((row) => element("tr", {}, ...cells("td", row)));
    return element("table", {}, element("thead", {}, top), element("tbody", {}, ...body));
  }

  const query = () => chosen.map((name) => `run=${encodeURIComponent(name)}`).join("&");

  function describe(run) {
    if (run.problem) return run.problem;
    if (run.step === null) return "nothing logged yet";
    return `step ${run.step}${run.total ? ` of ${run.total}` : ""}`;
  }

  async function list() {
    try {
      const { runs } = await askJson("/api/runs");
      showMessage("");
      const now = JSON.stringify(runs.map((run) => run.name));
      if (now !== listed) {
        listed = now;
        byId("list").replaceChildren(...runs.map(function (run) {
          const box = element("input", { type: "checkbox", value: run.name, checked: chosen.includes(run.name) });
          box.addEventListener("change", choose);
          return element("li", {}, element("label", {}, box, " ", element("span", {}, run.name)), " ", element("small", { class: "note" }));
        }));
        byId("state").textContent = runs.length ? ""
          : "There are no runs; start the server with --runs FOLDER, the folder of your runs.";
      }
      [...byId("list").children].forEach((item, at) => { item.lastChild.textContent = describe(runs[at]); });
      return runs;
    } catch (error) { showMessage(error.message); return []; }
  }

  async function choose() {
    chosen = [...document.querySelectorAll("#list input:checked")].map((box) => box.value);
    window.history.replaceState(null, "", `#${query()}`);
    if (stream) stream.close();
    stream = null;
    logs = new Map([...logs].filter(([name]) => chosen.includes(name)));
    draw();
    for (const id of ["differences", "values", "curves"]) byId(id).hidden = !chosen.length;
    if (!chosen.length) return;
    stream = new EventSource(`/api/logs?${query()}`);
    stream.addEventListener("log", function (event) {
      const log = JSON.parse(event.data);
      logs.set(log.name, log);
      draw();
    });
    await compare();
  }

  async function compare() {
    try {
      const found = await askJson(`/api/compare?${query()}`);
      const rows = (settings) => settings.map((each) => [each.name, ...each.values]);
      const none = chosen.length < 2 ? "Choose another run to compare with." : "No setting differs.";
      byId("differing").replaceChildren(found.differing.length
        ? table(["setting", ...found.runs], rows(found.differing)) : element("p", { class: "note" }, none));
      const count = found.same.length, many = `${count} ${count === 1 ? "setting" : "settings"}`;
      byId("alike").textContent = chosen.length < 2 ? many : `${many} the same`;
      byId("same").replaceChildren(table(["setting", "value"], found.same.map((each) => [each.name, each.values[0]])));
    } catch (error) { showMessage(error.message); }
  }

  function draw() {
    const shown = chosen.map((name) => logs.get(name)).filter(Boolean);
    const parts = [...new Set(shown.flatMap((log) => Object.keys(log.parts)))];
    const rows = [];
    for (const part of parts) {
      const metrics = [...new Set(shown.flatMap((log) => Object.keys(log.parts[part] || {})))];
      for (const metric of metrics) {
        if (/_(low|high)$/.test(metric)) continue;
        rows.push([`${part} ${metric}`, ...shown.map(function (log) {
          const found = (log.parts[part] || {})[metric];
          return found ? charts.short(found.last, metric) : null;
        })]);
      }
    }
    byId("last").replaceChildren(table(["metric", ...shown.map((log) => log.name)], rows));
    byId("legend").replaceChildren(...shown.map((log) => element("li", {},
      element("i", { class: `color-${chosen.indexOf(log.name) % COLORS}` }), log.name)),
      element("li", {}, "line: training, dots: evaluation"));
    const last = Math.max(1, ...shown.map((log) => log.step || 0));
    const names = [...new Set(shown.flatMap((log) => log.metrics))];
    byId("charts").replaceChildren(...names.map(function (metric) {
      const lines = shown.flatMap((log) => parts.filter((part) => (log.parts[part] || {})[metric])
        .filter((part) => metric !== "steps" || part === "train")
        .map((part) => ({ ...log.parts[part][metric], part, color: chosen.indexOf(log.name) % COLORS })));
      return lines.length ? charts.drawPanel(metric, TITLES[metric] || metric, lines, last) : "";
    }));
  }

  (async function begin() {
    chosen = new URLSearchParams(window.location.hash.slice(1)).getAll("run");
    const runs = await list();
    if (!chosen.length && runs.length === 1) {
      document.querySelector("#list input").checked = true;
    }
    choose();
    setInterval(list, EVERY);
  })();
})();
