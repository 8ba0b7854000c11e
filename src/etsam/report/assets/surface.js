"use strict";
// The surface in WebGL2: a lit mesh coloured by membrane, the field's box and the slice shown.
(async () => {
  const canvas = document.getElementById("surface"), note = document.getElementById("surface-note");
  const packed = JSON.parse(document.getElementById("mesh").textContent);
  const meta = JSON.parse(document.getElementById("meta").textContent);
  if (!packed) { note.textContent = "no surface"; return; }
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) { note.textContent = "this browser has no WebGL2"; return; }

  async function inflated(text) {
    const raw = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }
  const places = new Uint16Array(await inflated(packed.vertices));
  const faces = new Uint32Array(await inflated(packed.faces));
  const membranes = new Uint8Array(await inflated(packed.membranes));
  const count = membranes.length;
  const points = Float32Array.from(places, (value, i) => value / 65535 * packed.size + packed.low[i % 3]);
  const middle = [0, 1, 2].map((axis) => (meta.box[0][axis] + meta.box[1][axis]) / 2);
  const reach = Math.hypot(...[0, 1, 2].map((axis) => meta.box[1][axis] - meta.box[0][axis])) / 2;

  const normals = new Float32Array(3 * count);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const u = [0, 1, 2].map((k) => points[b + k] - points[a + k]), v = [0, 1, 2].map((k) => points[c + k] - points[a + k]);
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) normals[corner + k] += n[k];
  }
  const palette = [[.9, .62, 0], [.34, .71, .91], [0, .62, .45], [.8, .47, .65], [.84, .37, 0], [0, .45, .7], [.75, .7, .2], [.55, .55, .55]];
  const colours = new Float32Array(3 * count);
  membranes.forEach((m, i) => colours.set(palette[(m + 7) % 8], 3 * i));

  function shader(kind, text) {
    const made = gl.createShader(kind);
    gl.shaderSource(made, "#version 300 es\nprecision highp float;\n" + text);
    gl.compileShader(made);
    if (!gl.getShaderParameter(made, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(made));
    return made;
  }
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, `
    in vec3 place; in vec3 normal; in vec3 colour; uniform mat3 turn; uniform vec3 middle; uniform vec4 scale;
    out vec3 n; out vec3 c;
    void main() { vec3 p = turn * (place - middle); n = turn * normal; c = colour;
      gl_Position = vec4(p.x * scale.x, p.y * scale.y, -p.z * scale.z, 1.0 - p.z * scale.w); }`));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `
    in vec3 n; in vec3 c; uniform float lit; out vec4 result;
    void main() { vec3 m = normalize(n + vec3(1e-9)); float d = abs(dot(m, normalize(vec3(.35, .45, .82))));
      float rim = pow(1.0 - abs(m.z), 3.0) * .25;
      result = vec4(mix(c, c * (.32 + .72 * d) + rim * .4, lit), 1.0); }`));
  gl.linkProgram(program);
  gl.useProgram(program);
  const at = (name) => gl.getUniformLocation(program, name);

  function attribute(name, data) {
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
    const index = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(index);
    gl.vertexAttribPointer(index, 3, gl.FLOAT, false, 0, 0);
  }
  const solid = gl.createVertexArray();
  gl.bindVertexArray(solid);
  attribute("place", points); attribute("normal", normals); attribute("colour", colours);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, faces, gl.STATIC_DRAW);

  const [low, high] = meta.box, corner = (i) => [0, 1, 2].map((k) => (i >> k & 1 ? high : low)[k]);
  const edges = [];
  for (let i = 0; i < 8; i++) for (let k = 0; k < 3; k++) if (!(i >> k & 1)) edges.push(corner(i), corner(i | 1 << k));
  const frame = gl.createVertexArray(), lines = new Float32Array(3 * (edges.length + 8));
  edges.forEach((edge, i) => lines.set(edge, 3 * i));
  gl.bindVertexArray(frame);
  const lineBuffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, lineBuffer);
  gl.bufferData(gl.ARRAY_BUFFER, lines, gl.DYNAMIC_DRAW);
  gl.enableVertexAttribArray(gl.getAttribLocation(program, "place"));
  gl.vertexAttribPointer(gl.getAttribLocation(program, "place"), 3, gl.FLOAT, false, 0, 0);

  let turn, zoom = 1, share = 0.5, queued = false;
  const product = (a, b) => { // 3 x 3, columns first
    const out = new Float32Array(9);
    for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) for (let k = 0; k < 3; k++) out[3 * j + i] += a[3 * k + i] * b[3 * j + k];
    return out;
  };
  const aboutX = (t) => new Float32Array([1, 0, 0, 0, Math.cos(t), Math.sin(t), 0, -Math.sin(t), Math.cos(t)]);
  const aboutY = (t) => new Float32Array([Math.cos(t), 0, -Math.sin(t), 0, 1, 0, Math.sin(t), 0, Math.cos(t)]);
  const mirror = new Float32Array([1, 0, 0, 0, -1, 0, 0, 0, -1]); // slices show y downwards
  const views = { top: mirror, front: aboutX(-Math.PI / 2), side: product(aboutY(-Math.PI / 2), aboutX(-Math.PI / 2)) };
  turn = product(product(aboutX(0.45), aboutY(0.5)), views.front);

  function draw() {
    queued = false;
    const ratio = Math.min(2, devicePixelRatio || 1), w = canvas.clientWidth * ratio | 0, h = canvas.clientHeight * ratio | 0;
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    gl.viewport(0, 0, w, h);
    gl.clearColor(1, 1, 1, 1);
    gl.enable(gl.DEPTH_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const size = zoom * 1.1 / reach, aspect = w / h;
    gl.uniformMatrix3fv(at("turn"), false, turn);
    gl.uniform3fv(at("middle"), middle);
    gl.uniform4f(at("scale"), size / Math.max(1, aspect), size * Math.min(1, aspect), 0.3 / reach, 0.25 / reach);
    gl.bindVertexArray(solid);
    gl.uniform1f(at("lit"), 1);
    gl.drawElements(gl.TRIANGLES, faces.length, gl.UNSIGNED_INT, 0);
    const z = low[2] + share * (high[2] - low[2]), ring = [0, 1, 1, 3, 3, 2, 2, 0];
    ring.forEach((i, k) => { const p = corner(i); p[2] = z; lines.set(p, 3 * (edges.length + k)); });
    gl.bindVertexArray(frame);
    gl.bindBuffer(gl.ARRAY_BUFFER, lineBuffer);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, lines);
    gl.uniform1f(at("lit"), 0);
    const colour = gl.getAttribLocation(program, "colour");
    gl.vertexAttrib3f(colour, 0.6, 0.63, 0.68);
    gl.drawArrays(gl.LINES, 0, edges.length);
    gl.vertexAttrib3f(colour, 0.13, 0.5, 0.8);
    gl.drawArrays(gl.LINES, edges.length, 8);
  }
  const later = () => { if (!queued) { queued = true; requestAnimationFrame(draw); } };
  const rotate = (dx, dy) => { turn = product(product(aboutX(dy), aboutY(dx)), turn); later(); };
  const magnify = (by) => { zoom = Math.min(12, Math.max(0.4, zoom * by)); later(); };

  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) rotate(event.movementX / 150, event.movementY / 150); });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); magnify(event.deltaY < 0 ? 1.1 : 1 / 1.1); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (moves[event.key]) rotate(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") magnify(1.1);
    else if (event.key === "-") magnify(1 / 1.1);
    else return;
    event.preventDefault();
  });
  document.querySelectorAll("[data-view]").forEach((button) => button.addEventListener("click", () => { turn = views[button.dataset.view]; later(); }));
  document.addEventListener("slice", (event) => { share = event.detail.z; later(); });
  new ResizeObserver(later).observe(canvas);
  document.documentElement.dataset.surface = String(packed.count[1]);
  note.textContent = `${packed.count[1].toLocaleString("en")} triangles`;
  draw();
})();
