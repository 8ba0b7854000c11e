"use strict";
// Slices, sections and threshold: grey values and logit levels (64 = threshold as saved) as two byte volumes.
(() => {
  const $ = (id) => document.getElementById(id);
  const meta = JSON.parse($("meta").textContent);
  const [Z, Y, X] = meta.shape;
  const grey = new Uint8Array(Z * Y * X), level = new Uint8Array(Z * Y * X);
  const ready = new Uint8Array(Z), pending = new Map();
  const place = { z: meta.start, y: Y >> 1, x: X >> 1 };
  const saved = 64;
  const tables = { grey: new Uint8Array(256), heat: heatColours() };
  const views = ["xy", "xz", "yz"].map((name) => ({ name, canvas: $(name), image: null }));
  const sizes = { xy: [X, Y], xz: [X, Z], yz: [Y, Z] };
  const step = meta.spacing || [1, 1, 1];
  const across = { xy: [step[2], step[1]], xz: [step[2], step[0]], yz: [step[1], step[0]] };
  let queued = false;

  function heatColours() {
    const colours = new Uint8Array(128 * 3);
    const stops = [[0, 13, 8, 60], [40, 90, 20, 110], [64, 200, 60, 80], [90, 250, 150, 40], [127, 252, 250, 190]];
    for (let i = 0; i < 128; i++) {
      const k = stops.findIndex((s, n) => n > 0 && i <= s[0]);
      const [a, b] = [stops[k - 1], stops[k]], t = (i - a[0]) / (b[0] - a[0]);
      for (let c = 0; c < 3; c++) colours[3 * i + c] = a[c + 1] + t * (b[c + 1] - a[c + 1]);
    }
    return colours;
  }

  async function pixels(text, target, offset) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/webp" }));
    const canvas = document.createElement("canvas");
    canvas.width = X; canvas.height = Y;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const data = context.getImageData(0, 0, X, Y).data;
    for (let i = 0; i < X * Y; i++) target[offset + i] = data[4 * i];
    bitmap.close();
  }

  function load(z) {
    if (ready[z]) return Promise.resolve();
    if (pending.has(z)) return pending.get(z);
    const element = $("s" + z);
    if (!element) return Promise.resolve();
    const [a, b] = element.textContent.split("|");
    const job = Promise.all([pixels(a, grey, z * X * Y), pixels(b, level, z * X * Y)]).then(() => {
      ready[z] = 1; pending.delete(z); element.remove();
    });
    pending.set(z, job);
    return job;
  }

  async function loadAll() {
    const order = [...Array(Z).keys()].sort((a, b) => Math.abs(a - place.z) - Math.abs(b - place.z));
    for (let i = 0; i < order.length; i += 4) {
      await Promise.all(order.slice(i, i + 4).map(load));
      if (i % 32 === 0) draw();
      await new Promise((next) => setTimeout(next));
    }
    draw();
    document.documentElement.dataset.loaded = "all";
  }

  // A view as two byte planes; smooth takes the mean of 3 x 3 pixels.
  function plane(name, volume) {
    const [w, h] = sizes[name], out = new Uint8Array(w * h);
    if (name === "xy") out.set(volume.subarray(place.z * X * Y, (place.z + 1) * X * Y));
    else for (let z = 0; z < Z; z++) {
      const row = (Z - 1 - z) * w;
      if (name === "xz") out.set(volume.subarray((z * Y + place.y) * X, (z * Y + place.y + 1) * X), row);
      else for (let y = 0; y < Y; y++) out[row + y] = volume[(z * Y + y) * X + place.x];
    }
    return out;
  }

  function smoothed(data, w, h) {
    const rows = new Uint16Array(w * h), out = new Uint8Array(w * h);
    for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++)
      rows[i] = data[i] + data[x ? i - 1 : i] + data[x < w - 1 ? i + 1 : i];
    for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++)
      out[i] = (rows[i] + rows[y ? i - w : i] + rows[y < h - 1 ? i + w : i]) / 9;
    return out;
  }

  function paint(view) {
    const [w, h] = sizes[view.name], canvas = view.canvas;
    if (!view.image) {
      canvas.width = w; canvas.height = h;
      canvas.style.aspectRatio = `${w * across[view.name][0]} / ${h * across[view.name][1]}`;
      view.image = new ImageData(w, h);
      view.context = canvas.getContext("2d");
    }
    let shown = plane(view.name, grey);
    if ($("smooth").checked) shown = smoothed(shown, w, h);
    const levels = plane(view.name, level), cut = +$("threshold").value, mode = $("overlay").value;
    const data = view.image.data, table = tables.grey, heat = tables.heat;
    for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++) {
      let r = table[shown[i]], g = r, b = r;
      const inside = levels[i] > cut;
      if (mode === "heat") {
        const v = levels[i], t = Math.min(0.85, Math.max(0, (v - 49) / 30));
        r += t * (heat[3 * v] - r); g += t * (heat[3 * v + 1] - g); b += t * (heat[3 * v + 2] - b);
      } else if (inside && mode === "fill") {
        r += 0.5 * (255 - r); g += 0.5 * (176 - g); b -= 0.5 * b;
      } else if (inside && mode === "outline") {
        const rim = (x && levels[i - 1] <= cut) || (x < w - 1 && levels[i + 1] <= cut) ||
          (y && levels[i - w] <= cut) || (y < h - 1 && levels[i + w] <= cut);
        if (rim) { r = 255; g = 176; b = 0; }
      }
      data[4 * i] = r; data[4 * i + 1] = g; data[4 * i + 2] = b; data[4 * i + 3] = 255;
    }
    view.context.putImageData(view.image, 0, 0);
    cross(view, w, h);
  }

  function cross(view, w, h) {
    const at = { xy: [place.x, place.y], xz: [place.x, Z - 1 - place.z], yz: [place.y, Z - 1 - place.z] }[view.name];
    view.context.fillStyle = "rgba(86,180,233,.55)";
    view.context.fillRect(at[0], 0, 1, h); view.context.fillRect(0, at[1], w, 1);
  }

  function contrastTable() {
    const middle = +$("brightness").value, gain = Math.pow(2, (+$("contrast").value - 25) / 20);
    for (let i = 0; i < 256; i++) tables.grey[i] = Math.max(0, Math.min(255, 128 + (i - (255 - middle)) * gain));
  }

  function report() {
    const cut = +$("threshold").value, value = meta.threshold + (cut - saved) * meta.levelStep;
    $("threshold-out").value = meta.logits ? value.toFixed(2) : "mask";
    const slice = `z = ${place.z * meta.binning[0]} (0 to ${meta.fullShape[0] - 1})`;
    $("z-out").value = slice;
    const voxels = meta.above[cut], volume = meta.voxelVolume ? voxels * meta.voxelVolume / 1e12 : null;
    const loaded = ready.reduce((sum, one) => sum + one, 0);
    const text = `${volume === null ? "" : volume.toPrecision(3) + " µm³, "}${voxels.toLocaleString("en")} voxels above the threshold`;
    if ($("live").textContent !== text) $("live").textContent = text; // read aloud only when it changes
    $("loading").textContent = loaded < Z ? `; reading slices, ${Math.round(100 * loaded / Z)} %` : "";
    $("xz").setAttribute("aria-label", `Section along x and z at y ${place.y * meta.binning[1]}`);
    $("yz").setAttribute("aria-label", `Section along y and z at x ${place.x * meta.binning[2]}`);
    $("xy").setAttribute("aria-label", `Slice ${slice}, membrane ${$("overlay").value}`);
  }

  function draw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      const start = performance.now();
      views.forEach(paint);
      report();
      document.documentElement.dataset.drawMs = (performance.now() - start).toFixed(1);
      document.dispatchEvent(new CustomEvent("slice", { detail: { z: place.z / Math.max(1, Z - 1) } }));
    });
  }

  function go(axis, value) {
    const limit = { z: Z, y: Y, x: X }[axis];
    place[axis] = Math.max(0, Math.min(limit - 1, Math.round(value)));
    $("z").value = place.z;
    load(place.z).then(draw);
    draw();
  }

  function scaleBar() {
    if (!meta.spacing) return;
    const width = X * meta.spacing[2] / 10, power = Math.pow(10, Math.floor(Math.log10(width * 0.3)));
    const length = [5, 2, 1].map((k) => k * power).find((value) => value <= width * 0.3);
    $("bar").innerHTML = `<i></i> ${length} nm`;
    const size = () => { $("bar").firstChild.style.width = `${$("xy").clientWidth * length / width}px`; };
    new ResizeObserver(size).observe($("xy"));
  }

  const through = { xy: "z", xz: "y", yz: "x" };
  views.forEach(({ name, canvas }) => {
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      go(through[name], place[through[name]] + Math.sign(event.deltaY) * (event.shiftKey ? 10 : 1));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!by) return;
      event.preventDefault();
      go(through[name], place[through[name]] + by * (event.shiftKey ? 10 : 1));
    });
    canvas.addEventListener("pointerdown", (event) => pick(name, canvas, event));
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) pick(name, canvas, event); });
  });

  function pick(name, canvas, event) {
    const box = canvas.getBoundingClientRect(), [w, h] = sizes[name];
    const a = Math.floor((event.clientX - box.left) / box.width * w), b = Math.floor((event.clientY - box.top) / box.height * h);
    if (name === "xy") { go("x", a); go("y", b); }
    if (name === "xz") { go("x", a); go("z", Z - 1 - b); }
    if (name === "yz") { go("y", a); go("z", Z - 1 - b); }
  }

  $("z").max = Z - 1; $("z").value = place.z;
  $("z").addEventListener("input", (event) => go("z", +event.target.value));
  $("threshold").value = saved; $("threshold").disabled = !meta.logits;
  if (!meta.logits) $("overlay").querySelector('[value="heat"]').remove();
  for (const id of ["threshold", "overlay", "smooth"]) $(id).addEventListener("input", draw);
  for (const id of ["brightness", "contrast"]) $(id).addEventListener("input", () => { contrastTable(); draw(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const cut = $("threshold");
    if (event.key === "[" && meta.logits) cut.value = +cut.value - 1;
    else if (event.key === "]" && meta.logits) cut.value = +cut.value + 1;
    else if (event.key === "0") cut.value = saved;
    else if (event.key === "s") $("smooth").checked = !$("smooth").checked;
    else if (event.key === "o") {
      const box = $("overlay");
      box.selectedIndex = (box.selectedIndex + 1) % box.options.length;
    } else return;
    draw();
  });
  contrastTable();
  scaleBar();
  load(place.z).then(draw);
  document.addEventListener("DOMContentLoaded", () => loadAll());
})();
