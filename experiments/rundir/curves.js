// Draws the curves of `experiments/rundir/curves.py` into #curves, from #curves-data.
"use strict";
(() => {
  const { panels, rollbacks } = JSON.parse(
    document.getElementById("curves-data").textContent);
  // The drawing and the frame in it, in the units of its view box.
  const W = 380, H = 210, LEFT = 52, RIGHT = W - 18, TOP = 8, BOTTOM = H - 34;
  const FRAME = { x: LEFT, y: TOP, width: RIGHT - LEFT, height: BOTTOM - TOP };
  const steps = panels.flatMap(p => p.curves.flatMap(c => c.points.map(q => q[0])));
  const all = [Math.min(...steps), Math.max(Math.min(...steps) + 1, ...steps)];
  const button = document.getElementById("all-steps");
  let range = all;

  const svg = (tag, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const ticks = ([low, high], least) => {
    // The largest round step of which at least `least` multiples are in the range.
    const power = 10 ** Math.floor(Math.log10((high - low) / (least + 1)));
    const step = power * [10, 5, 2, 1].find(m =>
      Math.floor(high / (m * power)) - Math.ceil(low / (m * power)) + 1 >= least);
    const found = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step)
      found.push(Math.abs(t) < step / 1e6 ? 0 : t);
    return found;
  };
  const told = v => Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3)
    ? v.toExponential(1) : String(+v.toPrecision(4));

  const drawn = panels.map((panel, i) => {
    const figure = document.getElementById("curves").appendChild(
      document.createElement("figure"));
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.appendChild(document.createElement("strong")).textContent = panel.title;
    const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img",
      "aria-label": `${panel.title}, over training steps` }, figure);
    const values = panel.curves.map(curve => {
      if (curve.label) {
        const key = caption.appendChild(document.createElement("span"));
        key.className = `key ${curve.colour}`;
      }
      const value = document.createElement("output");
      caption.append(curve.label, " ", value);
      return value;
    });
    const x = step =>
      LEFT + FRAME.width * (step - range[0]) / (range[1] - range[0]);
    const stepAt = event => {
      const box = root.getBoundingClientRect();
      const at = ((event.clientX - box.left) * W / box.width - LEFT) / FRAME.width;
      return range[0] + Math.min(1, Math.max(0, at)) * (range[1] - range[0]);
    };
    let started = null, marks = null;

    const draw = () => {
      root.replaceChildren();
      // One point beyond either end, for the line to leave the frame.
      const seen = panel.curves.map(({ points }) => {
        const first = points.findIndex(p => p[0] >= range[0]);
        const last = points.findLastIndex(p => p[0] <= range[1]);
        return first < 0 ? [] : points.slice(Math.max(0, first - 1), last + 2);
      });
      const inside = seen.flat().filter(
        ([s, v]) => v !== null && s >= range[0] && s <= range[1]);
      let [low, high] = [Infinity, -Infinity];
      for (const [, v] of inside) { low = Math.min(low, v); high = Math.max(high, v); }
      if (!inside.length) [low, high] = [0, 1];
      const margin = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
      [low, high] = [low - margin, high + margin];
      const y = v => BOTTOM - FRAME.height * (v - low) / (high - low);
      const line = (x1, x2, y1, y2, name, parent) =>
        svg("line", { x1, x2, y1, y2, class: name }, parent);
      const text = (x, y, anchor, words, more) =>
        svg("text", { x, y, "text-anchor": anchor, ...more }, root, words);
      svg("rect", FRAME, svg("clipPath", { id: `clip-${i}` }, root));
      for (const t of ticks([low, high], 3)) {
        line(LEFT, RIGHT, y(t), y(t), "grid-line", root);
        text(LEFT - 4, y(t) + 4, "end", told(t));
      }
      for (const t of ticks(range, 3)) {
        line(x(t), x(t), TOP, BOTTOM, "grid-line", root);
        text(x(t), BOTTOM + 13, "middle", told(t));
      }
      text((LEFT + RIGHT) / 2, H - 4, "middle", "training step");
      text(0, 0, "middle", panel.unit,
        { transform: `translate(10 ${(TOP + BOTTOM) / 2}) rotate(-90)` });
      const lines = svg("g", { "clip-path": `url(#clip-${i})` }, root);
      for (const step of rollbacks) line(x(step), x(step), TOP, BOTTOM, "alarm", lines);
      if (panel.limit !== null)
        line(LEFT, RIGHT, y(panel.limit), y(panel.limit), "alarm", lines);
      // A null breaks the curve; a point between two breaks is a dot.
      const path = points => points.map(([s, v], k) => v === null ? ""
        : `${(points[k - 1] ?? [s, null])[1] === null ? "M" : "L"}`
          + `${x(s).toFixed(1)},${y(v).toFixed(1)}h0`).join("");
      seen.forEach((points, j) => svg("path",
        { class: `curve ${panel.curves[j].colour}`, d: path(points) }, lines));
      svg("rect", { ...FRAME, class: "frame" }, root);
      marks = svg("g", {}, root);
    };
    const point = event => {
      const step = stepAt(event);
      marks.replaceChildren();
      const [from, to] = [started ?? step, step].sort((a, b) => a - b);
      svg("rect", { ...FRAME, x: x(from), width: x(to) - x(from), class: "chosen" },
        marks);
      svg("line", { x1: x(step), x2: x(step), y1: TOP, y2: BOTTOM, class: "pointer" },
        marks);
      panel.curves.forEach(({ points }, j) => {
        const near = points.filter(p => p[1] !== null).reduce((a, b) =>
          Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
        values[j].textContent = ` ${told(near[1])} at step ${near[0]}`;
      });
    };
    root.addEventListener("pointerdown", event => {
      started = stepAt(event);
      root.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    root.addEventListener("pointermove", point);
    root.addEventListener("pointerup", event => {
      const chosen = [started, stepAt(event)].sort((a, b) => a - b);
      const least = 0.02 * (range[1] - range[0]);
      if (started !== null && chosen[1] - chosen[0] > least) zoom(chosen);
      started = null;
    });
    root.addEventListener("pointerleave", () => {
      marks.replaceChildren();
      for (const value of values) value.textContent = "";
    });
    root.addEventListener("dblclick", () => zoom(all));
    return draw;
  });
  const zoom = to => {
    range = to;
    button.hidden = to === all;
    for (const draw of drawn) draw();
  };
  button.addEventListener("click", () => zoom(all));
  zoom(all);
})();
