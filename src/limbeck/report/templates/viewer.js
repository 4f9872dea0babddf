// Each figure of class `viewer` on the page: its scene, turned by mouse, touch and keys.

const TURN_RATE = 12; // degrees per second, of a view that turns by itself
const KEY_STEP = 10; // degrees
const ZOOM_STEP = 1.15;
const PATIENCE = 100; // ms that a frame may take: beyond it what moves is drawn coarser
const COARSEST = 96; // pixels along a side: where even that is slow, nothing turns by itself
const REST = 250; // ms without a change, until all is drawn as finely as can be
const KEYS = { ArrowLeft: [KEY_STEP, 0], ArrowRight: [-KEY_STEP, 0], ArrowUp: [0, -KEY_STEP], ArrowDown: [0, KEY_STEP] };

/** Make a figure live, drawn by `painter`; returns what a script may ask of it. */
function startViewer(figure, painter) {
  const scene = JSON.parse(figure.querySelector("script").textContent);
  const [canvas, pose, button] = ["canvas", "output", "button"].map((part) => figure.querySelector(part));
  const context = canvas.getContext("2d", { alpha: false });
  const splats = unpack(scene);
  const first = { azimuth: 0, elevation: scene.elevation, distance: scene.distance };
  let view = first, finest = painter.most, rest = 0, frame = 0, turning = false, shown = true;

  function draw(width, height) {
    const projected = project(splats, orbit(view, scene.fovy, width, height));
    const paint = () => painter.paint(projected, width, height, scene.background);
    let picture;
    try {
      picture = paint();
    } catch (error) {
      if (painter.name === "cpu") throw error;
      painter = softwarePainter();
      picture = paint();
    }
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.drawImage(picture, 0, 0);
  }

  function refresh(most = painter.most) {
    const side = Math.round(Math.min(canvas.clientWidth * devicePixelRatio, most));
    if (side < 1) return; // not laid out
    const began = performance.now();
    draw(side, side);
    adapt(performance.now() - began, side);
    pose.value = `azimuth ${Math.round(view.azimuth)}°, elevation ${Math.round(view.elevation)}°`;
  }

  function adapt(spent, side) {
    if (spent > PATIENCE && side <= COARSEST) setTurning(false);
    if (spent > PATIENCE) finest = Math.max(side / 2, COARSEST);
    else if (spent < PATIENCE / 5) finest = Math.min(2 * finest, painter.most);
  }

  function look(change) {
    const { azimuth, elevation, distance } = { ...view, ...change };
    view = {
      azimuth: 180 - ((((180 - azimuth) % 360) + 360) % 360),
      elevation: clamp(elevation, -90, 90),
      distance: clamp(distance, first.distance / 4, first.distance * 4),
    };
    refresh(finest);
    clearTimeout(rest);
    rest = setTimeout(refresh, REST);
  }

  function move(change) {
    setTurning(false);
    look(change);
  }

  const turn = (right, down) => move({ azimuth: view.azimuth + right, elevation: view.elevation + down });
  const zoom = (factor) => move({ distance: view.distance / factor });
  const reset = () => move(first);

  function setTurning(on) {
    turning = on;
    cancelAnimationFrame(frame);
    if (on) frame = requestAnimationFrame((now) => step(now, now));
    button.textContent = on ? "Stop turning" : "Turn";
  }

  function step(before, now) {
    if (shown) look({ azimuth: view.azimuth + (TURN_RATE * Math.min(now - before, 100)) / 1000 });
    if (turning) frame = requestAnimationFrame((next) => step(now, next));
  }

  figure.classList.add("live");
  refresh();
  listen(canvas, { turn, zoom, reset });
  button.addEventListener("click", () => setTurning(!turning));
  new ResizeObserver(() => refresh()).observe(canvas);
  new IntersectionObserver(([entry]) => (shown = entry.isIntersecting)).observe(canvas);
  setTurning(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  return {
    canvas,
    look: move,
    draw,
    view: () => ({ ...view }),
    painter: () => painter.name,
    picture: (width, height) =>
      composite(project(splats, orbit(view, scene.fovy, width, height)), width, height, scene.background),
  };
}

function bestPainter() {
  try {
    return webglPainter();
  } catch {
    return softwarePainter();
  }
}

/** Dragging turns the object along with the pointer, two fingers and the wheel (once the canvas has the focus) zoom. */
function listen(canvas, { turn, zoom, reset }) {
  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  const drop = (event) => pointers.delete(event.pointerId);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const apart = pointers.size === 2 ? spread() : 0, degrees = 180 / canvas.clientWidth;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (apart) zoom(spread() / apart);
    else if (pointers.size === 1) turn((before.x - event.clientX) * degrees, (event.clientY - before.y) * degrees);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(end, drop);
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // the page scrolls
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 1000));
  }, { passive: false });
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in KEYS) turn(...KEYS[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(ZOOM_STEP);
    else if (event.key === "-") zoom(1 / ZOOM_STEP);
    else if (event.key === "Home") reset();
    else return;
    event.preventDefault();
  });
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

const painter = bestPainter(); // one for all: browsers allow a page few WebGL contexts
window.limbeckViewers = [...document.querySelectorAll(".viewer")].map((figure) => {
  try {
    return startViewer(figure, painter);
  } catch (error) {
    figure.classList.remove("live"); // what stands there without scripts
    console.error(error);
    return null;
  }
});
