// Splats as a page holds them, their projection, their order, and the picture of a view by the CPU; all in double precision
// and with the formulas of limbeck.scenes.splatting and limbeck.scenes.compositing.

const NEAR = 0.01;
const LOW_PASS = 0.3; // pixels^2, added to each projected covariance
const MARGIN = 0.3; // of half the image: beyond it the local affine map is that of the border
const LOG_LEAST = -Math.log(255); // fainter alphas are none
const MOST = 0.99; // the largest alpha

// One splat in the image: x, y, slope, fall, narrow, log opacity, red, green, blue. With dy from y and dx from x + slope dy,
// log alpha = log opacity - fall dy^2 - narrow dx^2.
const RECORD = 9;

/** A page's splats: `data` is float32 means, then per splat 16-bit codes, those of column k worth low[k] + step[k] code. */
function unpack({ count, low, step, data }) {
  const letters = atob(data), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const codes = new Uint16Array(bytes.buffer, 12 * count);
  const columns = low.length, colours = columns - 8; // after 3 log scales, a quaternion and a logit
  const splats = {
    count,
    coefficients: colours / 3,
    means: Float64Array.from(new Float32Array(bytes.buffer, 0, 3 * count)),
    roots: new Float64Array(9 * count),
    logOpacity: new Float64Array(count),
    harmonics: new Float64Array(colours * count),
  };
  for (let i = 0; i < count; i++) {
    const value = (k) => low[k] + step[k] * codes[i * columns + k];
    splats.roots.set(covarianceRoot([0, 1, 2].map(value), [3, 4, 5, 6].map(value)), 9 * i);
    splats.logOpacity[i] = -Math.log1p(Math.exp(-value(7)));
    for (let k = 0; k < colours; k++) splats.harmonics[colours * i + k] = value(8 + k);
  }
  return splats;
}

/** M = R S, row by row, of log scales and a quaternion wxyz of any length: the covariance is M M^T. */
function covarianceRoot(logScales, quaternion) {
  const length = Math.hypot(...quaternion);
  const [w, x, y, z] = quaternion.map((part) => part / length);
  const rotation = [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ];
  return rotation.map((part, k) => part * Math.exp(logScales[k % 3]));
}

/** A camera around the origin, upright; angles in degrees. World: z up, azimuth 0 on +x and growing towards +y. */
function orbit({ azimuth, elevation, distance }, fovy, width, height) {
  const a = (azimuth * Math.PI) / 180, e = (elevation * Math.PI) / 180;
  const outward = [Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)];
  return {
    right: [-Math.sin(a), Math.cos(a), 0],
    down: [Math.sin(e) * Math.cos(a), Math.sin(e) * Math.sin(a), -Math.cos(e)],
    look: outward.map((part) => -part),
    position: outward.map((part) => distance * part),
    focal: height / (2 * Math.tan((fovy * Math.PI) / 360)),
    width,
    height,
  };
}

/** The splats that reach the image: `records` of RECORD numbers, and `order`, which of them come front to back. */
function project(splats, { right, down, look, position, focal, width, height }) {
  const { means, roots, logOpacity } = splats;
  const records = new Float64Array(RECORD * splats.count), depths = new Float32Array(splats.count);
  const widest = ((1 + MARGIN) * width) / (2 * focal), highest = ((1 + MARGIN) * height) / (2 * focal);
  const across = [0, 0, 0], along = [0, 0, 0], colour = [0, 0, 0];
  let seen = 0;
  for (let i = 0; i < splats.count; i++) {
    const away = [means[3 * i] - position[0], means[3 * i + 1] - position[1], means[3 * i + 2] - position[2]];
    const z = dot(look, away);
    if (z <= NEAR) continue;
    const u = dot(right, away) / z, v = dot(down, away) / z;
    const boundU = Math.min(Math.max(u, -widest), widest), boundV = Math.min(Math.max(v, -highest), highest);
    for (let k = 0; k < 3; k++) {
      across[k] = (focal / z) * (right[k] - boundU * look[k]);
      along[k] = (focal / z) * (down[k] - boundV * look[k]);
    }
    let xx = LOW_PASS, xy = 0, yy = LOW_PASS;
    for (let j = 9 * i; j < 9 * i + 3; j++) {
      const p = across[0] * roots[j] + across[1] * roots[j + 3] + across[2] * roots[j + 6];
      const q = along[0] * roots[j] + along[1] * roots[j + 3] + along[2] * roots[j + 6];
      xx += p * p;
      xy += p * q;
      yy += q * q;
    }
    const left = xx - (xy * xy) / yy; // the variance within a row
    const x = focal * u + width / 2, y = focal * v + height / 2;
    const reach = Math.sqrt(2 * (logOpacity[i] - LOG_LEAST)); // in standard deviations, not a number below the least alpha
    const inside = touches(x, reach * Math.sqrt(xx), width) && touches(y, reach * Math.sqrt(yy), height);
    if (!inside || !(left > 0) || !Number.isFinite(left)) continue;
    paint(splats, i, away, colour);
    records.set([x, y, xy / yy, 1 / (2 * yy), 1 / (2 * left), logOpacity[i], ...colour], RECORD * seen);
    depths[seen++] = z;
  }
  return { records, order: frontToBack(depths, seen) };
}

function dot(a, b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

function touches(centre, reach, size) {
  return centre + reach >= 0 && centre - reach <= size;
}

/** Write max(0, sum_k c_k Y_k + 0.5) of splat i, seen along `away`, to `colour`. */
function paint({ harmonics, coefficients }, i, away, colour) {
  const length = Math.hypot(away[0], away[1], away[2]);
  const basis = harmonicsAt(away[0] / length, away[1] / length, away[2] / length, coefficients);
  for (let c = 0; c < 3; c++) {
    let sum = 0.5;
    for (let k = 0; k < coefficients; k++) sum += basis[k] * harmonics[3 * (i * coefficients + k) + c];
    colour[c] = Math.max(0, sum);
  }
}

/** Real spherical harmonics in the order and with the signs of limbeck.scenes.harmonics: 1, 4, 9 or 16 of them. */
function harmonicsAt(x, y, z, coefficients) {
  const basis = [0.28209479177387814];
  if (coefficients < 4) return basis;
  const a = 0.4886025119029199, b = 1.0925484305920792;
  basis.push(-a * y, a * z, -a * x);
  if (coefficients < 9) return basis;
  const xx = x * x, yy = y * y, zz = z * z;
  basis.push(b * x * y, -b * y * z, 0.31539156525252005 * (3 * zz - 1), -b * x * z, (b / 2) * (xx - yy));
  if (coefficients < 16) return basis;
  const c = 0.5900435899266435, d = 0.4570457994644658;
  basis.push(-c * y * (3 * xx - yy), 2.890611442640554 * x * y * z, -d * y * (5 * zz - 1));
  basis.push(0.3731763325901154 * z * (5 * zz - 3), -d * x * (5 * zz - 1), 1.445305721320277 * z * (xx - yy), -c * x * (xx - 3 * yy));
  return basis;
}

/** The first `count` depths in rising order, equal ones as they come: two counting sorts of their bits. */
function frontToBack(depths, count) {
  const bits = new Uint32Array(depths.buffer);
  let order = Uint32Array.from({ length: count }, (_, i) => i), sorted = new Uint32Array(count);
  for (const shift of [0, 16]) {
    const start = new Uint32Array(65537);
    for (const i of order) start[((bits[i] >>> shift) & 0xffff) + 1]++;
    for (let key = 0; key < 65536; key++) start[key + 1] += start[key];
    for (const i of order) sorted[start[(bits[i] >>> shift) & 0xffff]++] = i;
    [order, sorted] = [sorted, order];
  }
  return order;
}

/** Red, green and blue of each pixel, row by row: each splat fills an interval of every row that its ellipse meets. */
function composite({ records, order }, width, height, background) {
  const picture = new Float64Array(3 * width * height), through = new Float64Array(width * height).fill(1);
  for (const n of order) {
    const [x, y, slope, fall, narrow, log, red, green, blue] = records.subarray(RECORD * n, RECORD * (n + 1));
    const [top, bottom] = pixels(y, Math.sqrt((log - LOG_LEAST) / fall), height);
    for (let row = top; row <= bottom; row++) {
      const dy = row + 0.5 - y, peak = log - fall * dy * dy, centre = x + slope * dy;
      const [first, last] = pixels(centre, Math.sqrt(Math.max(peak - LOG_LEAST, 0) / narrow), width);
      for (let pixel = row * width + first, dx = first + 0.5 - centre; pixel <= row * width + last; pixel++, dx++) {
        const alpha = Math.min(Math.exp(peak - narrow * dx * dx), MOST), weight = alpha * through[pixel];
        picture[3 * pixel] += weight * red;
        picture[3 * pixel + 1] += weight * green;
        picture[3 * pixel + 2] += weight * blue;
        through[pixel] -= weight;
      }
    }
  }
  return picture.map((light, k) => light + through[Math.floor(k / 3)] * background[k % 3]);
}

/** [first, last] of the pixels of 0 .. size - 1 whose centres lie within `reach`. */
function pixels(centre, reach, size) {
  return [Math.max(Math.ceil(centre - reach - 0.5), 0), Math.min(Math.floor(centre + reach - 0.5), size - 1)];
}

/** A painter by the CPU: draws a projected view, and returns something that a canvas can draw. */
function softwarePainter() {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  return {
    name: "cpu",
    most: 256, // pixels along a side
    paint(view, width, height, background) {
      const image = new ImageData(width, height);
      composite(view, width, height, background).forEach((light, k) => {
        image.data[Math.floor(k / 3) * 4 + (k % 3)] = 255 * light;
      });
      for (let alpha = 3; alpha < image.data.length; alpha += 4) image.data[alpha] = 255;
      Object.assign(canvas, { width, height });
      context.putImageData(image, 0, 0);
      return canvas;
    },
  };
}
