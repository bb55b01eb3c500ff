"use strict";
// Shows the puzzles in #data.
(function () {
  const player = makePlayer(document);
  player.load(JSON.parse(document.getElementById("data").textContent));
  // page.html#rollout=2&step=3 opens it there.
  const asked = new URLSearchParams(window.location.hash.slice(1));
  if (asked.has("rollout")) player.choose((Number(asked.get("rollout")) || 1) - 1);
  if (asked.has("step")) player.go(Number(asked.get("step")) || 0);
})();
