// Quality against latency: whiskers, hover, click to choose, any measure. A point is filled when it is on the front:
// against every other one better by separated intervals in quality or in time; hollow when the intervals do not decide.
document.addEventListener("DOMContentLoaded", () => {
  const data = readJson("plot-data"), box = document.getElementById("plot");
  if (!data || !box) return;
  const pickQuality = document.getElementById("plot-quality"), pickLatency = document.getElementById("plot-latency");
  const tip = document.getElementById("tip"), NS = "http://www.w3.org/2000/svg";
  const fill = (select, list) => list.forEach((m) => select.add(new Option(m.title + (m.unit ? ` (${m.unit})` : ""), m.key)));
  fill(pickQuality, data.quality);
  fill(pickLatency, data.latency);
  const make = (name, attributes, parent, text) => {
    const e = document.createElementNS(NS, name);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    if (text !== undefined) e.textContent = text;
    parent.append(e);
    return e;
  };
  const duration = (s) => s < 1 ? `${+(s * 1000).toPrecision(3)} ms` : `${+s.toPrecision(3)} s`;
  const path = { reference: "M0-9 2.4-3 8.6-2.8 3.8 1.2 5.4 7.4 0 4-5.4 7.4-3.8 1.2-8.6-2.8-2.4-3Z",
    method: "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0Z", baseline: "M-5-5H5V5H-5Z",
    external: "M0-7L7 0 0 7-7 0Z", open: "M0-6.5L6.5 5H-6.5Z" };
  const above = (a, b) => a[1] !== null && b[2] !== null && a[1] > b[2];

  function niceStep(span, count) {
    const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
    return power * [1, 2, 5, 10].find((m) => m * power >= rough);
  }

  function draw() {
    const metric = data.quality.find((m) => m.key === pickQuality.value), time = pickLatency.value;
    // Distance from what is best, so that the same rule serves measures that are best high, low, at 0 or at 1.
    const merit = ([v, l, h]) => {
      if (metric.best === "high") return [v, l, h];
      if (metric.best === "one") {
        if (l === null || h === null) return [-Math.abs(v - 1), null, null];
        const far = Math.max(Math.abs(l - 1), Math.abs(h - 1)), near = l <= 1 && h >= 1 ? 0 : Math.min(Math.abs(l - 1), Math.abs(h - 1));
        return [-Math.abs(v - 1), -far, -near];
      }
      return [-v, h === null ? null : -h, l === null ? null : -l];
    };
    const points = data.cells.filter((c) => c.numbers[metric.key][0] !== null && c.numbers[time][0] > 0)
      .map((c) => ({ c, q: c.numbers[metric.key].map((v) => v === null ? null : v * metric.scale), s: c.numbers[time], m: merit(c.numbers[metric.key]) }));
    for (const p of points) {
      const rest = points.filter((o) => o !== p);
      p.place = rest.every((o) => above(p.m, o.m) || above(o.s, p.s)) ? "front"
        : rest.some((o) => above(o.m, p.m) && above(p.s, o.s)) ? "dominated" : "undecided";
    }
    box.querySelector("svg")?.remove();
    const W = Math.max(300, box.clientWidth - 36), H = W < 560 ? 340 : 430, left = 58, right = 22, top = 18, bottom = 52;
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${metric.title} against latency` }, box);
    if (!points.length) { make("text", { x: W / 2, y: H / 2, "text-anchor": "middle", class: "axis" }, svg, "no cell has both numbers"); return; }
    const times = points.flatMap((p) => p.s.filter((v) => v > 0)), values = points.flatMap((p) => p.q.filter((v) => v !== null));
    const x0 = Math.log(Math.min(...times)) - .35, x1 = Math.log(Math.max(...times)) + .35;
    let y0 = Math.min(...values), y1 = Math.max(...values);
    const pad = (y1 - y0 || Math.abs(y1) || 1) * .1;
    y0 -= pad; y1 += pad;
    if (metric.unit === "%") { y0 = Math.max(y0, -2); y1 = Math.min(y1, 103); }
    const X = (s) => left + (Math.log(s) - x0) / (x1 - x0) * (W - left - right);
    const Y = (v) => H - bottom - (v - y0) / (y1 - y0) * (H - top - bottom);
    for (let e = -5; e < 6; e++) for (const m of W < 560 ? [1, 3] : [1, 2, 5]) {
      const s = m * 10 ** e;
      if (Math.log(s) < x0 || Math.log(s) > x1) continue;
      make("line", { x1: X(s), x2: X(s), y1: top, y2: H - bottom, class: "grid" }, svg);
      make("text", { x: X(s), y: H - bottom + 18, "text-anchor": "middle", class: "tick" }, svg, duration(s));
    }
    const step = niceStep(y1 - y0, 6);
    for (let v = Math.ceil(y0 / step) * step; v <= y1; v += step) {
      make("line", { x1: left, x2: W - right, y1: Y(v), y2: Y(v), class: "grid" }, svg);
      make("text", { x: left - 8, y: Y(v) + 4, "text-anchor": "end", class: "tick" }, svg, +v.toPrecision(6));
    }
    make("text", { x: (left + W - right) / 2, y: H - 10, "text-anchor": "middle", class: "axis" }, svg, "← faster · median time for one clip (log scale)");
    make("text", { transform: `translate(14 ${(top + H - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, svg,
      metric.title + (metric.unit ? ` (${metric.unit})` : ""));
    const taken = points.map((p) => [X(p.s[0]) - 9, Y(p.q[0]) - 9, X(p.s[0]) + 9, Y(p.q[0]) + 9]);
    for (const p of points) if (p.q[1] !== null) taken.push([X(p.s[0]) - 4, Y(p.q[2]), X(p.s[0]) + 4, Y(p.q[1])]);
    for (const p of points) drawPoint(p, svg, X, Y, metric, taken, W);
  }

  function drawPoint(p, svg, X, Y, metric, taken, W) {
    const x = X(p.s[0]), y = Y(p.q[0]), colour = p.c.kind === "reference" ? "var(--ink)" : p.c.colour;
    const g = make("g", { class: "point", tabindex: 0, role: "button", "data-point": p.c.cell, "aria-label": p.c.label }, svg);
    if (p.place === "dominated") g.setAttribute("opacity", ".55");
    const line = (a) => make("line", { ...a, stroke: colour, "stroke-width": 1.6 }, g);
    if (p.q[1] !== null) line({ x1: x, x2: x, y1: Y(p.q[1]), y2: Y(p.q[2]) });
    if (p.s[1] !== null) line({ x1: X(p.s[1]), x2: X(p.s[2]), y1: y, y2: y });
    make("circle", { cx: x, cy: y, r: 15, fill: colour, class: "halo" }, g);
    make("path", { d: path[p.c.kind], transform: `translate(${x} ${y})`, stroke: colour, "stroke-width": 1.8,
      fill: p.place === "undecided" ? "var(--card)" : colour }, g);
    const name = make("text", { class: "name", fill: colour }, g, p.c.label), w = name.getComputedTextLength() || 7 * p.c.label.length;
    const spots = [[12, 4], [-12 - w, 4], [-w / 2, -15], [-w / 2, 24], [10, -10], [10, 18], [-10 - w, -10], [-10 - w, 18], [10, -26], [10, 34], [-w - 10, -26], [-w - 10, 34]];
    const cost = ([dx, dy]) => {
      const b = [x + dx, y + dy - 11, x + dx + w, y + dy + 3];
      const hit = taken.reduce((sum, t) => sum + Math.max(0, Math.min(b[2], t[2]) - Math.max(b[0], t[0])) * Math.max(0, Math.min(b[3], t[3]) - Math.max(b[1], t[1])), 0);
      return hit + 50 * Math.max(0, 58 - b[0], b[2] - W + 4);
    };
    const best = spots.reduce((a, s, i) => { const c = cost(s) + i; return c < a[0] ? [c, s] : a; }, [Infinity, spots[0]])[1];
    name.setAttribute("x", x + best[0]);
    name.setAttribute("y", y + best[1]);
    taken.push([x + best[0], y + best[1] - 11, x + best[0] + w, y + best[1] + 3]);
    g.classList.toggle("on", chosen === p.c.cell);
    const show = () => {
      const text = (v) => v === null ? "" : v.toFixed(metric.decimals);
      const ci = p.q[1] === null ? "" : ` [${text(p.q[1])}, ${text(p.q[2])}]`;
      const speed = p.s[1] === null ? "" : ` [${duration(p.s[1])}, ${duration(p.s[2])}]`;
      tip.textContent = [p.c.label, `${metric.title}: ${text(p.q[0])} ${metric.unit}${ci}`, `Time: ${duration(p.s[0])}${speed}`,
        p.c.denoise_speedup && p.c.kind !== "reference" ? `Denoise ${p.c.denoise_speedup}, end to end ${p.c.end_to_end_speedup}` : "",
        `${p.c.nfe ?? "?"} NFE, ${p.c.kept === null ? "?" : Math.round(100 * p.c.kept)} % of blocks`,
        `Verdict: ${p.c.verdict} · ${{ front: "on the front", dominated: "dominated", undecided: "front not decided" }[p.place]}`].filter(Boolean).join("\n");
      const scale = svg.clientWidth / W, offset = svg.offsetTop || box.querySelector(".controls").offsetHeight + 10;
      tip.style.left = `${Math.min(Math.max(0, x * scale + 16), Math.max(0, box.clientWidth - tip.offsetWidth))}px`;
      tip.style.top = `${y * scale + offset + 14}px`;
      tip.style.opacity = 1;
    };
    const hide = () => { tip.style.opacity = 0; };
    g.addEventListener("mouseenter", show);
    g.addEventListener("focus", show);
    g.addEventListener("mouseleave", hide);
    g.addEventListener("blur", hide);
    g.addEventListener("click", () => choose(p.c.cell));
    g.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); choose(p.c.cell); } });
  }

  pickQuality.addEventListener("change", draw);
  pickLatency.addEventListener("change", draw);
  document.addEventListener("choose", () => {
    box.querySelectorAll(".point").forEach((g) => g.classList.toggle("on", g.dataset.point === chosen));
  });
  let width = 0;
  const fit = () => { if (box.clientWidth !== width) { width = box.clientWidth; draw(); } };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(box); // drawing inside the callback would loop
});
