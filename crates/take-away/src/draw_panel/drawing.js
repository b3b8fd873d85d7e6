// The area to draw on, for mouse, pen, finger and keyboard: the panel's and the training page's.

const PEN_WIDTH = 20;
/** How far an arrow key moves the pen. */
const STEP = 10;
const ARROWS = {
  ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP],
};

/**
 * Lets the reader draw. `penMark` shows where the arrow keys have moved the pen. Calls `onChange` at
 * most once per frame.
 */
function makeDrawing(canvas, penMark, onChange) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const { width, height } = canvas;
  let last = null; // the position of the pen while it is down
  let keys = [width / 2, height / 4]; // the position that arrow keys move
  let due = false;

  function changed() {
    if (!due) requestAnimationFrame(() => { due = false; onChange(); });
    due = true;
  }

  function line(from, to) {
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0], to[1] + 0.01); // a line of length 0 would not leave a dot
    pen.stroke();
    changed();
  }

  function drawTo(event) {
    const area = canvas.getBoundingClientRect();
    const scale = width / area.width;
    const point = [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
    line(last ?? point, point);
    last = point;
  }

  canvas.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    drawTo(event);
  });
  canvas.addEventListener("pointermove", event => {
    if (last && event.isPrimary) (event.getCoalescedEvents?.() ?? [event]).forEach(drawTo);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { last = null; });
  }

  canvas.addEventListener("keydown", event => {
    const move = ARROWS[event.key];
    if (!move) return;
    event.preventDefault();
    const limit = (value, end) => Math.min(Math.max(value, 0), end);
    const to = [limit(keys[0] + move[0], width), limit(keys[1] + move[1], height)];
    if (event.shiftKey) line(keys, to);
    keys = to;
    penMark.hidden = false;
    penMark.style.left = `${100 * to[0] / width}%`;
    penMark.style.top = `${100 * to[1] / height}%`;
  });
  canvas.addEventListener("blur", () => { penMark.hidden = true; });

  function clear() {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, width, height);
    Object.assign(pen, {
      strokeStyle: "white", lineWidth: PEN_WIDTH, lineCap: "round", lineJoin: "round",
    });
    changed();
  }
  clear();

  return {
    clear,
    /** The drawing as a picture for `prepare`. */
    read() {
      const { data } = pen.getImageData(0, 0, width, height);
      const red = data.filter((_, i) => i % 4 === 0);
      return { width, height, data: Float32Array.from(red, value => value / 255) };
    },
  };
}
