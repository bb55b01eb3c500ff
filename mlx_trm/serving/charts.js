"use strict";
// Curves as SVG: a panel a metric, a colour a run; thin lines are training, dots evaluations.
const charts = (function () {
  const WIDE = 320, HIGH = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 24;

  function short(value, metric) {
    if (metric === "peak_memory") {
      return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`;
    }
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
    return size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  }

  // Round numbers from low to high, about so many of them.
  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    const found = [];
    for (let at = Math.floor(low / step + 1e-9); (at - 1) * step < high * (1 - 1e-9); at++) found.push(at * step);
    return found;
  }

  function scale(values, metric) {
    let low = Math.min(...values), high = Math.max(...values);
    if (metric.endsWith("loss") && low > 0 && high > 10 * low) {
      const [from, to] = [Math.log10(low), Math.log10(high)];
      const marks = [];
      for (let power = Math.floor(from); power <= to; power++) {
        for (const each of to - from > 2 ? [1] : [1, 2, 5]) marks.push(each * 10 ** power);
      }
      return { at: (value) => (Math.log10(value) - from) / (to - from), marks: marks.filter((m) => m >= low && m <= high) };
    }
    if (low > 0) low = 0;
    if (high === low) high = low + 1;
    const marks = ticks(low, high, 4);
    [low, high] = [marks[0], marks[marks.length - 1]];
    return { at: (value) => (value - low) / (high - low), marks };
  }

  // given: [{color, part, steps, values}]; last: the largest step of all panels.
  function drawPanel(metric, name, given, last) {
    let lines = given, title = name;
    if (metric === "peak_memory") {
      const gib = lines.some((line) => Math.max(...line.values) >= 2 ** 30);
      const unit = gib ? 2 ** 30 : 2 ** 20;
      lines = lines.map((line) => ({ ...line, values: line.values.map((value) => value / unit) }));
      title += gib ? ", GiB" : ", MiB";
    }
    const all = lines.flatMap((line) => line.values);
    const vertical = scale(all, metric);
    const x = (step) => LEFT + (step / (last || 1)) * (WIDE - LEFT - RIGHT);
    const y = (value) => HIGH - BOTTOM - vertical.at(value) * (HIGH - TOP - BOTTOM);
    const svg = drawing.make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": title });
    for (const mark of vertical.marks) {
      svg.append(drawing.make("path", { d: `M${LEFT} ${y(mark)}H${WIDE - RIGHT}`, class: "axis" }));
      svg.append(drawing.make("text", { x: LEFT - 4, y: y(mark) + 3, class: "mark end" }, short(mark, "")));
    }
    for (const mark of ticks(0, last, 4).filter((each) => each <= last)) {
      svg.append(drawing.make("text", { x: x(mark), y: HIGH - 8, class: "mark" }, short(mark, "")));
    }
    for (const line of lines) {
      const trained = line.part === "train";
      const points = line.steps.map((step, at) => `${x(step).toFixed(1)} ${y(line.values[at]).toFixed(1)}`);
      svg.append(drawing.make("path", { d: `M${points.join("L")}`, class: `curve color-${line.color}${trained ? "" : " measured"}` }));
      if (!trained || points.length === 1) {
        for (const point of points) {
          const [cx, cy] = point.split(" ");
          svg.append(drawing.make("circle", { cx, cy, r: 2.4, class: `dot color-${line.color}` }));
        }
      }
    }
    return element("figure", {}, element("figcaption", {}, title), svg);
  }

  return { drawPanel, short };
})();
