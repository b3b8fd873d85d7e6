// Prepares the drawing as MNIST's digits were prepared, evaluates the network, and shows the ten
// probabilities. `parameters.js`, `prepare.js` and `drawing.js` come before this. A tensor is
// { shape, data } without a batch dimension; images are [height, width, channels], row by row.

// ---- The network: its layers in order ----

const element = id => document.getElementById(id);
const layers = JSON.parse(element("layers").textContent);
addParameters(element("parameters").textContent);

/** Adds the parameters to the layers: "0/kernel" to layer 0, as its property `kernel`. */
function addParameters(base64) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  for (const [path, values] of Object.entries(readParameters(bytes))) {
    const [layer, name] = path.split("/");
    layers[layer][name] = values;
  }
}

// ---- Layers: each function takes the inputs and the layer, and returns the output's data ----

const functions = {
  conv([x], { kernel, bias, window, strides, padding, shape }) {
    const [height, width, channels] = x.shape;
    const [rows, columns, features] = shape;
    const data = new Float32Array(rows * columns * features);
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      const start = (row * columns + column) * features;
      const out = data.subarray(start, start + features);
      out.set(bias);
      for (let i = 0; i < window[0]; i++) for (let j = 0; j < window[1]; j++) {
        const sourceRow = row * strides[0] + i - padding[0];
        const sourceColumn = column * strides[1] + j - padding[1];
        if (sourceRow < 0 || sourceRow >= height) continue;
        if (sourceColumn < 0 || sourceColumn >= width) continue;
        const pixel = (sourceRow * width + sourceColumn) * channels;
        const tap = (i * window[1] + j) * channels;
        for (let channel = 0; channel < channels; channel++) {
          addScaled(out, x.data[pixel + channel], kernel, (tap + channel) * features);
        }
      }
    }
    return data;
  },

  dense([x], { kernel, bias }) {
    const data = Float32Array.from(bias);
    for (let i = 0; i < x.data.length; i++) addScaled(data, x.data[i], kernel, i * data.length);
    return data;
  },

  batch_norm([x], { scale, bias, mean, var: variance, epsilon }) {
    const factors = scale.map((value, channel) => value / Math.sqrt(variance[channel] + epsilon));
    return x.data.map((value, index) => {
      const channel = index % factors.length;
      return (value - mean[channel]) * factors[channel] + bias[channel];
    });
  },

  layer_norm: ([x], { scale, bias, epsilon }) => mapRows(x, row => {
    const mean = sum(row) / row.length;
    const centered = row.map(value => value - mean);
    const variance = sum(centered.map(value => value ** 2)) / row.length;
    const factor = 1 / Math.sqrt(variance + epsilon);
    return centered.map((value, channel) => value * factor * scale[channel] + bias[channel]);
  }),

  dropout: ([x]) => x.data,
  relu: ([x]) => x.data.map(value => Math.max(value, 0)),
  gelu: ([x]) => x.data.map(value =>
    value / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (value + 0.044715 * value ** 3)))),
  avg_pool: ([x], { window }) => averages(x, window),
  max_pool: ([x], { window }) => pool(x, window, Math.max, -Infinity),
  global_avg_pool: ([x]) => averages(x, x.shape),
  flatten: ([x]) => x.data,
  add: ([a, b]) => a.data.map((value, index) => value + b.data[index]),

  concatenate(inputs, { shape }) {
    const channels = shape.at(-1);
    const data = new Float32Array(shape.reduce((product, size) => product * size));
    let offset = 0;
    for (const { shape, data: values } of inputs) {
      const size = shape.at(-1);
      for (let i = 0; i * size < values.length; i++) {
        data.set(values.subarray(i * size, (i + 1) * size), i * channels + offset);
      }
      offset += size;
    }
    return data;
  },

  log_softmax: ([x]) => mapRows(x, scores => {
    const largest = scores.reduce((a, b) => Math.max(a, b));
    const total = sum(scores.map(score => Math.exp(score - largest)));
    return scores.map(score => score - largest - Math.log(total));
  }),
};

function addScaled(out, factor, values, start) {
  if (factor === 0) return; // common: black pixels, and zeros from ReLU
  for (let i = 0; i < out.length; i++) out[i] += factor * values[start + i];
}

const sum = values => values.reduce((total, value) => total + value, 0);

/** Changes each row of numbers in the last dimension. */
function mapRows({ shape, data }, change) {
  const size = shape.at(-1), changed = new Float32Array(data.length);
  for (let start = 0; start < data.length; start += size) {
    changed.set(change(data.subarray(start, start + size)), start);
  }
  return changed;
}

function averages(x, [height, width]) {
  const size = height * width;
  return pool(x, [height, width], (total, value) => total + value / size, 0);
}

function pool({ shape: [height, width, channels], data: values }, window, reduce, initial) {
  const rows = Math.floor(height / window[0]), columns = Math.floor(width / window[1]);
  const data = new Float32Array(rows * columns * channels).fill(initial);
  for (let row = 0; row < rows * window[0]; row++) {
    const outRow = Math.floor(row / window[0]);
    for (let column = 0; column < columns * window[1]; column++) {
      const pixel = (row * width + column) * channels;
      const out = (outRow * columns + Math.floor(column / window[1])) * channels;
      for (let channel = 0; channel < channels; channel++) {
        data[out + channel] = reduce(data[out + channel], values[pixel + channel]);
      }
    }
  }
  return data;
}

/** The ten probabilities for an image of 28 × 28 numbers from 0 (black) to 1 (white). */
function predict(image) {
  // The image, then the output of each layer.
  const tensors = [{ shape: [28, 28, 1], data: Float32Array.from(image) }];
  for (const layer of layers) {
    const inputs = layer.inputs.map(index => tensors[index]);
    tensors.push({ shape: layer.shape, data: functions[layer.kind](inputs, layer) });
  }
  return Array.from(functions.log_softmax([tensors.at(-1)]), Math.exp);
}

// ---- The page ----

const bars = Array.from({ length: 10 }, (_, digit) => {
  const bar = document.createElement("li");
  bar.innerHTML =
    `<span>${digit}</span>` +
    `<div role="meter" aria-label="${digit}" aria-valuemin="0" aria-valuemax="100">` +
    "<div></div></div><span></span>";
  return element("bars").appendChild(bar);
});
const drawing = makeDrawing(element("drawing"), element("pen"), show);
element("clear").addEventListener("click", () => drawing.clear());

function show() {
  const image = prepare(drawing.read());
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
  const answer = image ? `This looks like a ${best}.` : "Draw a digit from 0 to 9.";
  element("answer").textContent = answer;
  const seen = new ImageData(28, 28);
  seen.data.forEach((_, i) => {
    const isAlpha = i % 4 === 3;
    seen.data[i] = isAlpha ? 255 : 255 * (image ? image[i >> 2] : 0);
  });
  element("seen").getContext("2d").putImageData(seen, 0, 0);
}

// In a notebook: fits the frame's height to the page, and removes the fallback text.
if (frameElement) {
  frameElement.nextElementSibling?.remove();
  const fitHeight = () => { frameElement.style.height = `${document.body.offsetHeight}px`; };
  new ResizeObserver(fitHeight).observe(document.body);
  // JupyterLab and its exported pages name their theme, which need not be the system's.
  const notebook = frameElement.ownerDocument.body;
  const followTheme = () => {
    const scheme = { true: "light", false: "dark" }[notebook.dataset.jpThemeLight];
    document.documentElement.style.colorScheme = scheme ?? "light dark";
  };
  new MutationObserver(followTheme).observe(notebook, { attributeFilter: ["data-jp-theme-light"] });
  followTheme();
}
