// Every clip on the page shows the same frame: one clock, one scrubber. A clip is one image with its frames side by side.
document.addEventListener("DOMContentLoaded", () => {
  const data = readJson("gallery-data"), place = document.getElementById("clips");
  if (!data || !place) return;
  const play = document.getElementById("play"), scrub = document.getElementById("scrub"), speed = document.getElementById("speed");
  const counter = document.getElementById("frame"), difference = document.getElementById("difference"), size = document.getElementById("size");
  const N = data.size, clips = [];
  const names = { presence: "object", colour: "colour", shape: "shape", direction: "direction", second_present: "second", second_colour: "its colour" };
  let frame = 0, playing = !matchMedia("(prefers-reduced-motion: reduce)").matches, last = 0;

  function element(tag, parent, text, className) {
    const e = document.createElement(tag);
    if (text) e.textContent = text;
    if (className) e.className = className;
    parent.append(e);
    return e;
  }

  function judged(marks, parent) {
    const line = element("span", parent, "", "marks"), wrong = Object.keys(names).filter((k) => marks[k] === false);
    const known = Object.keys(names).some((k) => k in marks);
    if (known) element("span", line, wrong.length ? `✗ ${wrong.map((k) => names[k]).join(", ")}` : "✓ all right", wrong.length ? "no" : "yes");
    if (marks.turn_error !== undefined) element("span", line, `${known ? " · " : ""}${marks.turn_error} px off`);
    if (!known && marks.turn_error === undefined) element("span", line, "not judged");
  }

  data.conditions.forEach((condition, i) => {
    const row = element("div", place, "", "clip-row");
    element("p", row, `${i + 1}. ${condition.caption}`);
    const line = element("div", row);
    let truth = null;
    for (const cell of data.cells) {
      const holder = element("figure", line, "", "clip");
      holder.dataset.cell = cell.cell;
      holder.style.setProperty("--c", cell.kind === "reference" ? "var(--ink)" : cell.colour);
      const canvas = element("canvas", holder);
      canvas.width = canvas.height = N;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${cell.label}: ${condition.caption}`);
      const note = element("figcaption", holder), title = element("b", note);
      element("i", title, "", "dot");
      title.append(cell.label);
      title.title = cell.label;
      judged(condition.marks[cell.cell] || {}, note);
      const clip = { canvas, context: canvas.getContext("2d"), source: condition.clips[cell.cell], image: null, visible: false, truth, holder };
      if (cell.cell === "real") truth = clip;
      clips.push(clip);
      canvas.clip = clip;
      canvas.addEventListener("click", () => choose(cell.cell));
    }
  });

  function load(clip) {
    if (clip.image) return;
    clip.image = new Image();
    clip.image.onload = () => clips.forEach(draw);
    clip.image.src = clip.source;
  }

  function draw(clip) {
    if (!clip.visible || !clip.image?.complete) return;
    const c = clip.context, paint = (image) => c.drawImage(image, frame * N, 0, N, N, 0, 0, N, N);
    c.globalCompositeOperation = "copy";
    paint(clip.image);
    if (difference.checked && clip.truth?.image?.complete) {
      c.globalCompositeOperation = "difference";
      paint(clip.truth.image);
    }
  }

  function show(next) {
    frame = ((next % data.frames) + data.frames) % data.frames;
    scrub.value = frame;
    counter.textContent = `${frame} / ${data.frames - 1}`;
    clips.forEach(draw);
  }

  function setPlaying(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(on));
  }

  const watcher = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    const clip = target.clip;
    clip.visible = isIntersecting;
    if (!isIntersecting) return;
    load(clip);
    if (clip.truth) load(clip.truth);
    draw(clip);
  }), { rootMargin: "200px" });
  clips.forEach((clip) => watcher.observe(clip.canvas));

  function tick(now) {
    if (playing && now - last >= 1000 / (data.fps * Number(speed.value))) {
      last = now;
      show(frame + 1);
    }
    requestAnimationFrame(tick);
  }

  const toggles = document.getElementById("toggles");
  for (const cell of data.cells) {
    const button = element("button", toggles, cell.label);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      clips.forEach((clip) => { if (clip.holder.dataset.cell === cell.cell) clip.holder.hidden = !on; });
    });
  }
  const resize = () => place.style.setProperty("--side", `${size.value}px`);
  if (innerWidth < 640) size.value = "96";
  resize();
  size.addEventListener("change", resize);
  difference.addEventListener("change", () => show(frame));
  play.addEventListener("click", () => setPlaying(!playing));
  scrub.max = data.frames - 1;
  scrub.addEventListener("input", () => { setPlaying(false); show(Number(scrub.value)); });
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("select, textarea, input:not(#scrub)")) return;
    if (e.key === " " && !e.target.closest("button, summary, a")) { e.preventDefault(); setPlaying(!playing); }
    if (e.key === "ArrowLeft" || e.key === "ArrowRight") {
      e.preventDefault();
      setPlaying(false);
      show(frame + (e.key === "ArrowRight" ? 1 : -1));
    }
  });
  setPlaying(playing);
  show(0);
  requestAnimationFrame(tick);
});
