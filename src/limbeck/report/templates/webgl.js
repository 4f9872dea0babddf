// The picture of a view by WebGL2: one quad per splat, front to back, into floating point; then over the background.

const SPLAT_VERTEX = `#version 300 es
layout(location = 0) in vec2 mean;
layout(location = 1) in vec3 shape; // slope, fall, narrow
layout(location = 2) in vec4 paint; // log opacity, red, green, blue
uniform vec2 size;
flat out vec2 centre;
flat out vec3 form;
flat out vec4 light;
void main() {
  float room = max(paint.x - ${LOG_LEAST}, 0.0);
  vec2 reach = sqrt(room * vec2(1.0 / shape.z + shape.x * shape.x / shape.y, 1.0 / shape.y));
  vec2 corner = 2.0 * vec2(gl_VertexID & 1, gl_VertexID >> 1) - 1.0;
  vec2 place = 2.0 * (mean + corner * reach) / size - 1.0;
  gl_Position = vec4(place.x, -place.y, 0.0, 1.0);
  centre = mean;
  form = shape;
  light = paint;
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
uniform vec2 size;
flat in vec2 centre;
flat in vec3 form;
flat in vec4 light;
out vec4 colour;
void main() {
  float dy = size.y - gl_FragCoord.y - centre.y;
  float dx = gl_FragCoord.x - centre.x - form.x * dy;
  float logAlpha = light.x - form.y * dy * dy - form.z * dx * dx;
  if (logAlpha < ${LOG_LEAST}) discard;
  float alpha = min(exp(logAlpha), ${MOST});
  colour = vec4(alpha * light.yzw, alpha);
}`;

const WHOLE_VERTEX = `#version 300 es
void main() {
  gl_Position = vec4(4.0 * vec2(gl_VertexID & 1, gl_VertexID >> 1) - 1.0, 0.0, 1.0);
}`;

const WHOLE_FRAGMENT = `#version 300 es
precision highp float;
uniform highp sampler2D picture;
uniform vec3 background;
out vec4 colour;
void main() {
  vec4 front = texelFetch(picture, ivec2(gl_FragCoord.xy), 0);
  colour = vec4(front.rgb + (1.0 - front.a) * background, 1.0);
}`;

/** A painter by WebGL2, as `softwarePainter`; throws where the browser has none that works. */
function webglPainter() {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (!gl) throw new Error("this browser has no WebGL2");
  const splatProgram = link(gl, SPLAT_VERTEX, SPLAT_FRAGMENT), wholeProgram = link(gl, WHOLE_VERTEX, WHOLE_FRAGMENT);
  const size = gl.getUniformLocation(splatProgram, "size"), behind = gl.getUniformLocation(wholeProgram, "background");
  bindInstances(gl);
  const target = floatingTarget(gl);
  gl.blendFunc(gl.ONE_MINUS_DST_ALPHA, gl.ONE); // what lies behind shows by 1 - alpha of all in front
  return {
    name: "webgl",
    most: 1024,
    paint({ records, order }, width, height, background) {
      if (gl.isContextLost()) throw new Error("WebGL lost its context");
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      target.resize(width, height);
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.enable(gl.BLEND);
      gl.useProgram(splatProgram);
      gl.uniform2f(size, width, height);
      gl.bufferData(gl.ARRAY_BUFFER, inOrder(records, order), gl.DYNAMIC_DRAW);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, order.length);
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.disable(gl.BLEND);
      gl.useProgram(wholeProgram);
      gl.uniform3fv(behind, background);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
      return canvas;
    },
  };
}

function link(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`WebGL2: ${gl.getProgramInfoLog(program)}`);
  return program;
}

/** One record per instance: 2, 3 and 4 floats are the attributes of the splat shader. */
function bindInstances(gl) {
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  for (const [location, floats, offset] of [[0, 2, 0], [1, 3, 8], [2, 4, 20]]) {
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, floats, gl.FLOAT, false, 4 * RECORD, offset);
    gl.vertexAttribDivisor(location, 1);
  }
}

function inOrder(records, order) {
  const sorted = new Float32Array(RECORD * order.length);
  order.forEach((n, place) => sorted.set(records.subarray(RECORD * n, RECORD * (n + 1)), RECORD * place));
  return sorted;
}

/** A framebuffer in the most exact format that blends here: 8 bits lose faint splats. */
function floatingTarget(gl) {
  const floats = gl.getExtension("EXT_color_buffer_float"), blends = gl.getExtension("EXT_float_blend");
  const format = floats && blends ? gl.RGBA32F : floats ? gl.RGBA16F : gl.RGBA8;
  const framebuffer = gl.createFramebuffer();
  let texture = null, held = "";
  return {
    resize(width, height) {
      gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
      if (held === `${width} ${height}`) return;
      gl.deleteTexture(texture);
      texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST); // floats have no other
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      const status = gl.checkFramebufferStatus(gl.FRAMEBUFFER);
      if (status !== gl.FRAMEBUFFER_COMPLETE) throw new Error(`WebGL2: framebuffer status ${status}`);
      held = `${width} ${height}`;
    },
  };
}
