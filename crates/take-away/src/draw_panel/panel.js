"use strict";
// Draws, prepares the drawing as MNIST's digits were, evaluates the network on it, and shows the ten probabilities.
// A value is { shape, data }, without a batch: pictures are [height, width, channels], row by row.

// ---- The network: layers in order, and parameters in a safetensors file ----

const element = id => document.getElementById(id);
const layers = JSON.parse(element("layers").textContent);
const parameters = readSafetensors(element("parameters").textContent);

function readSafetensors(base64) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  const start = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  const tensors = {};
  for (const [path, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    const content = bytes.buffer.slice(start + from, start + to);
    const data = dtype === "F32" ? new Float32Array(content) : Float32Array.from(new Uint16Array(content), halfToNumber);
    tensors[path] = { shape, data };
  }
  return tensors;
}

/** A number in half precision, IEEE 754's binary16; none is infinite. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

// ---- The layers of the crate ----

const functions = {
  conv(x, { path }) {
    const kernel = parameters[`${path}/kernel`], bias = parameters[`${path}/bias`].data;
    const [height, width, channels] = x.shape;
    const [kernelHeight, kernelWidth, , features] = kernel.shape;
    const top = (kernelHeight - 1) >> 1, left = (kernelWidth - 1) >> 1; // SAME padding
    const data = new Float32Array(height * width * features);
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
      const out = data.subarray((row * width + column) * features, (row * width + column + 1) * features);
      out.set(bias);
      for (let i = 0; i < kernelHeight; i++) for (let j = 0; j < kernelWidth; j++) {
        const y = row + i - top, z = column + j - left;
        if (y < 0 || y >= height || z < 0 || z >= width) continue;
        const pixel = (y * width + z) * channels, tap = (i * kernelWidth + j) * channels;
        for (let channel = 0; channel < channels; channel++) {
          addScaled(out, x.data[pixel + channel], kernel.data, (tap + channel) * features);
        }
      }
    }
    return { shape: [height, width, features], data };
  },

  dense(x, { path }) {
    const kernel = parameters[`${path}/kernel`].data, bias = parameters[`${path}/bias`].data;
    const data = Float32Array.from(bias);
    for (let i = 0; i < x.data.length; i++) addScaled(data, x.data[i], kernel, i * data.length);
    return { shape: [data.length], data };
  },

  relu: x => ({ shape: x.shape, data: x.data.map(value => Math.max(value, 0)) }),
  avg_pool: (x, { window }) => pool(x, window, (sum, value) => sum + value / (window[0] * window[1]), 0),
  max_pool: (x, { window }) => pool(x, window, Math.max, -Infinity),
  flatten: x => ({ shape: [x.data.length], data: x.data }),

  log_softmax(x) {
    const classes = x.shape.at(-1);
    const data = new Float32Array(x.data.length);
    for (let start = 0; start < data.length; start += classes) {
      const scores = x.data.subarray(start, start + classes);
      const largest = Math.max(...scores);
      const sum = scores.reduce((sum, score) => sum + Math.exp(score - largest), 0);
      data.set(scores.map(score => score - largest - Math.log(sum)), start);
    }
    return { shape: x.shape, data };
  },
};

function addScaled(out, factor, values, start) {
  if (factor === 0) return; // most pixels are black, and ReLU leaves many zeros
  for (let i = 0; i < out.length; i++) out[i] += factor * values[start + i];
}

function pool(x, window, fold, first) {
  const [height, width, channels] = x.shape;
  const rows = Math.floor(height / window[0]), columns = Math.floor(width / window[1]);
  const data = new Float32Array(rows * columns * channels).fill(first);
  for (let y = 0; y < rows * window[0]; y++) for (let z = 0; z < columns * window[1]; z++) {
    const out = (Math.floor(y / window[0]) * columns + Math.floor(z / window[1])) * channels;
    for (let c = 0; c < channels; c++) data[out + c] = fold(data[out + c], x.data[(y * width + z) * channels + c]);
  }
  return { shape: [rows, columns, channels], data };
}

/** The ten probabilities for an image: 28 × 28 numbers from 0 (black) to 1 (white). */
function predict(image) {
  const input = { shape: [28, 28, 1], data: Float32Array.from(image) };
  const scores = layers.reduce((x, layer) => functions[layer.kind](x, layer), input);
  return Array.from(functions.log_softmax(scores).data, Math.exp);
}

// ---- The preparation, as in `prepare_digit` ----

const EDGE = 0.25; // weaker ink does not widen the digit's box

/** A drawing, { height, width, data }, as an image of 28 × 28; nothing if it is empty. */
function prepare(drawing) {
  const ink = cropToInk(drawing);
  return ink && centred(fit(ink, 20));
}

function cropToInk({ height, width, data }) {
  let top = height, bottom = -1, left = width, right = -1;
  data.forEach((value, index) => {
    if (value <= EDGE) return;
    const y = Math.floor(index / width), x = index % width;
    [top, bottom, left, right] = [Math.min(top, y), Math.max(bottom, y), Math.min(left, x), Math.max(right, x)];
  });
  if (bottom < 0) return null;
  const rows = [];
  for (let y = top; y <= bottom; y++) rows.push(...data.subarray(y * width + left, y * width + right + 1));
  return { height: bottom - top + 1, width: right - left + 1, data: Float32Array.from(rows) };
}

function fit(picture, side) {
  const scale = side / Math.max(picture.height, picture.width);
  const scaled = length => Math.max(1, Math.round(length * scale));
  const narrowed = transposed(resizeRows(picture, scaled(picture.width)));
  return transposed(resizeRows(narrowed, scaled(picture.height)));
}

/** Each pixel is the mean of what it covers. */
function resizeRows({ height, width, data }, newWidth) {
  const ratio = width / newWidth;
  const resized = new Float32Array(height * newWidth);
  resized.forEach((_, index) => {
    const start = (index % newWidth) * ratio, end = (index % newWidth + 1) * ratio;
    const row = Math.floor(index / newWidth) * width;
    let sum = 0;
    for (let x = Math.floor(start); x < Math.min(Math.ceil(end), width); x++) {
      sum += data[row + x] * (Math.min(end, x + 1) - Math.max(start, x));
    }
    resized[index] = sum / ratio;
  });
  return { height, width: newWidth, data: resized };
}

function transposed({ height, width, data }) {
  return { height: width, width: height, data: data.map((_, i) => data[(i % height) * width + Math.floor(i / height)]) };
}

function centred({ height, width, data }) {
  let mass = 0, momentY = 0, momentX = 0;
  data.forEach((value, index) => {
    mass += value;
    momentY += value * Math.floor(index / width);
    momentX += value * (index % width);
  });
  // Symmetric strokes have their centre between two pixels: they go the same way in spite of rounding errors.
  const place = (centre, length) => Math.min(Math.max(Math.floor(14 - centre + 0.499), 0), 28 - length);
  const top = place(momentY / mass, height), left = place(momentX / mass, width);
  const image = new Float32Array(28 * 28);
  data.forEach((value, index) => { image[(top + Math.floor(index / width)) * 28 + left + index % width] = value; });
  return image;
}

// ---- The page ----

const canvas = element("drawing");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const bars = Array.from({ length: 10 }, (_, digit) => {
  const bar = document.createElement("li");
  bar.innerHTML = `<span>${digit}</span><div role="meter" aria-label="${digit}" aria-valuemin="0" aria-valuemax="100">` +
    "<div></div></div><span></span>";
  return element("bars").appendChild(bar);
});
let last = null; // where the pen is while it is down
let due = false; // whether the probabilities will be shown before the next frame

function readDrawing() {
  const { height, width, data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  return { height, width, data: Float32Array.from({ length: height * width }, (_, i) => data[4 * i] / 255) };
}

function show() {
  due = false;
  const image = prepare(readDrawing());
  const probabilities = image ? predict(image) : Array(10).fill(0);
  const best = probabilities.indexOf(Math.max(...probabilities));
  const percent = digit => (100 * probabilities[digit]).toFixed(1);
  bars.forEach((bar, digit) => {
    const [, track, number] = bar.children;
    bar.className = image && digit === best ? "best" : "";
    track.firstChild.style.width = `${percent(digit)}%`;
    track.setAttribute("aria-valuenow", percent(digit));
    number.textContent = `${percent(digit)} %`;
  });
  element("answer").textContent = image ? `This looks like a ${best}.` : "Draw a digit from 0 to 9.";
  const seen = new ImageData(28, 28);
  seen.data.forEach((_, i) => { seen.data[i] = i % 4 === 3 ? 255 : 255 * (image ? image[i >> 2] : 0); });
  element("seen").getContext("2d").putImageData(seen, 0, 0);
}

function showSoon() {
  if (!due) requestAnimationFrame(show);
  due = true;
}

function drawTo(event) {
  const area = canvas.getBoundingClientRect();
  const scale = canvas.width / area.width;
  const [x, y] = [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
  pen.beginPath();
  pen.moveTo(...(last ?? [x, y]));
  pen.lineTo(x, y + 0.01); // a line without length would leave no dot
  pen.stroke();
  last = [x, y];
  showSoon();
}

function clear() {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(pen, { strokeStyle: "white", lineWidth: 20, lineCap: "round", lineJoin: "round" });
  show();
}

canvas.addEventListener("pointerdown", event => {
  if (!event.isPrimary || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  drawTo(event);
});
canvas.addEventListener("pointermove", event => {
  if (last && event.isPrimary) (event.getCoalescedEvents?.() ?? [event]).forEach(drawTo);
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
element("clear").addEventListener("click", clear);
clear();

// Within a notebook: as high as the page, and without the line that stands for it.
if (frameElement) {
  frameElement.nextElementSibling?.remove();
  new ResizeObserver(() => { frameElement.style.height = `${document.body.offsetHeight}px`; }).observe(document.body);
}
