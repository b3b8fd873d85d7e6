// The page: reads drawings, and shows what the worker reports of training.

import { drawChart } from "./chart.js";
import { loadProgram } from "./program.js";
import { fetchWeights } from "./weights.js";

const element = id => document.getElementById(id);
const percent = (value, digits) => `${(100 * value).toFixed(digits)} %`;

// ---- Reading a drawing ----

const bars = Array.from({ length: 10 }, (_, digit) => {
  const bar = document.createElement("li");
  bar.innerHTML = `<span>${digit}</span><div role="meter" aria-label="${digit}" aria-valuemin="0"
    aria-valuemax="100" aria-valuenow="0"><div></div></div><span></span>`;
  return element("bars").appendChild(bar);
});
const drawing = makeDrawing(element("drawing"), element("pen"), read); // of drawing.js
element("clear").addEventListener("click", () => drawing.clear());

let network = null;
/** What the network is to know once it is loaded, if training was faster. */
let learned = null;

function read() {
  if (!network) return;
  const image = prepare(drawing.read()); // of prepare.js
  const probabilities = image ? network.probabilities(image) : Array(10).fill(0);
  const best = probabilities.indexOf(Math.max(...probabilities));
  bars.forEach((bar, digit) => {
    const [, track, label] = bar.children;
    bar.className = image && digit === best ? "best" : "";
    track.firstElementChild.style.setProperty("--part", probabilities[digit].toFixed(3));
    track.setAttribute("aria-valuenow", (100 * probabilities[digit]).toFixed(1));
    label.textContent = image ? percent(probabilities[digit], 1) : "";
  });
  element("answer").innerHTML = image ? `This looks like a <b>${best}</b>.` : "Draw a digit.";
  paint(element("seen"), Array.from(image ?? Array(784).fill(0), value => 255 * value));
}

function paint(canvas, bytes) {
  const picture = new ImageData(28, 28);
  picture.data.forEach((_, i) => { picture.data[i] = i % 4 === 3 ? 255 : bytes[i >> 2]; });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

async function loadNetwork() {
  try {
    const [program, weights] = await Promise.all([loadProgram(location.search), fetchWeights()]);
    network = program.network(learned ?? weights);
    read();
  } catch (error) {
    element("answer").textContent = `The network cannot be loaded: ${error.message}`;
  }
}

/** From now on drawings are read by what training has learned. */
function learn(params, epochs) {
  learned = params;
  network?.replace(params);
  const after = epochs === 1 ? "one epoch" : `${epochs} epochs`;
  element("source").textContent = `Read by your own network, after ${after}.`;
  read();
}

// ---- Training ----

/** The buttons' states: the label of the main one, and whether the settings can be changed. */
const STATES = {
  ready: { label: "Start", editable: true },
  loading: { label: "Loading …" },
  training: { label: "Pause" },
  pausing: { label: "Pausing …" },
  paused: { label: "Go on" },
  finished: { label: "Train for ten more" },
};
/** The states that end by themselves. */
const BUSY = ["loading", "pausing"];
const worker = new Worker(new URL("worker.js", import.meta.url) + location.search, {
  type: "module",
});
let state = "ready";
let losses = [];
let epochs = [];
let stepsPerEpoch = 0;
let chartDue = false;

function enter(next) {
  state = next;
  const { label, editable = false } = STATES[state];
  element("go").textContent = label;
  const isBusy = BUSY.includes(state);
  element("go").ariaDisabled = isBusy; // `disabled` would take the focus from it
  element("over").hidden = editable || isBusy;
  for (const id of ["seed", "rate", "batch"]) element(id).disabled = !editable;
}

function say(text, isProblem = false) {
  element("status").textContent = text;
  element("status").className = isProblem ? "problem" : "";
}

element("settings").addEventListener("submit", event => {
  event.preventDefault();
  if (BUSY.includes(state)) return;
  if (state === "training") {
    worker.postMessage({ pause: true });
    enter("pausing");
  } else if (state === "ready") {
    const [seed, rate, batch] = ["seed", "rate", "batch"].map(id => element(id).valueAsNumber);
    [losses, epochs] = [[], []];
    worker.postMessage({ start: { seed, rate, batch } });
    enter("loading");
  } else {
    worker.postMessage({ resume: true });
    enter("loading");
  }
});

element("over").addEventListener("click", () => {
  worker.postMessage({ pause: true });
  enter("ready");
  say("Choose the settings, and start.");
  element("progress").hidden = true;
  element("seed").focus();
});

worker.onerror = event => say(`Training cannot run here: ${event.message}`, true);
worker.onmessage = ({ data: report }) => {
  if (report.kind) element("kind").textContent = `Your browser runs it with ${report.kind}.`;
  if (report.loaded !== undefined && state === "loading") showLoading(report.loaded);
  if (report.losses && ["loading", "training", "pausing"].includes(state)) showSteps(report);
  if (report.paused && state === "pausing") {
    enter("paused");
    say("Paused.");
  }
  if (report.tested && state === "training") element("progress").value = report.tested;
  if (report.epochs && state !== "ready") showEpoch(report);
  if (report.recalled && state === "ready") showRecalled(report);
  if (report.finished && state !== "ready") {
    enter("finished");
    say(`Done: ${report.finished} epochs.`);
  }
  if (report.problem) {
    enter(losses.length > 0 ? "paused" : "ready");
    say(report.problem, true);
  }
};

function showLoading(part) {
  element("progress").hidden = false;
  element("progress").value = part;
  say(`Fetching 70,000 digits: ${percent(part, 0)}`);
}

function showSteps({ losses: added, left, rate, stepsPerEpoch: steps }) {
  if (state === "loading") {
    enter("training");
    say("Training.");
  }
  stepsPerEpoch = steps;
  losses.length = Math.min(losses.length, epochs.length * steps + (steps - left - added.length));
  losses.push(...added);
  const perSecond = 1000 * rate * element("batch").valueAsNumber;
  element("epoch").textContent = epochs.length + 1;
  element("speed").textContent = Math.round(perSecond).toLocaleString("en");
  element("time").textContent = duration(left / rate / 1000);
  element("progress").hidden = false;
  element("progress").value = 1 - left / steps;
  showCurves();
}

function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Draws the curves, at most once per frame. */
function showCurves() {
  element("figures").hidden = element("curves").hidden = false;
  if (chartDue) return;
  chartDue = true;
  requestAnimationFrame(() => {
    chartDue = false;
    const accuracies = epochs.map(({ accuracy }) => accuracy);
    element("accuracy").textContent = accuracies.length ? percent(accuracies.at(-1), 2) : "–";
    const loss = drawChart(element("chart"), losses, accuracies, stepsPerEpoch);
    element("loss").textContent = loss?.toFixed(4) ?? "–";
  });
}

function showEpoch({ epochs: reported, mistakes, wrong, kept, parameters }) {
  epochs = reported;
  showCurves();
  learn(parameters, epochs.length);
  showMistakes(mistakes, wrong);
  const accuracy = percent(epochs.at(-1).accuracy, 2);
  const warning = kept ? "" : " This browser keeps nothing: leave the tab open.";
  say(`Epoch ${epochs.length}: ${accuracy} of the test digits recognized.${warning}`);
}

function showMistakes(mistakes, wrong) {
  element("mistakes").hidden = mistakes.length === 0;
  const some = mistakes.length < wrong ? `, here are ${mistakes.length} of them` : "";
  element("mistakes-count").textContent = `${wrong} of the 10,000 test images${some}.`;
  element("grid").replaceChildren(...mistakes.map(({ label, digit, pixels }) => {
    const item = document.createElement("li");
    const canvas = item.appendChild(document.createElement("canvas"));
    Object.assign(canvas, { width: 28, height: 28 });
    canvas.setAttribute("aria-hidden", "true");
    item.insertAdjacentHTML("beforeend", `a <b>${label}</b>, read as <b>${digit}</b>`);
    paint(canvas, pixels);
    return item;
  }));
}

/** Shows a run that began on an earlier visit. */
function showRecalled({ recalled, parameters }) {
  const { settings } = recalled;
  for (const id of ["seed", "rate", "batch"]) element(id).value = settings[id];
  ({ losses, epochs, stepsPerEpoch } = recalled);
  element("epoch").textContent = epochs.length;
  showCurves();
  learn(parameters, epochs.length);
  const wrong = Math.round((1 - epochs.at(-1).accuracy) * 10000);
  showMistakes(recalled.mistakes, wrong);
  enter(epochs.length < recalled.target ? "paused" : "finished");
  say(`Your training is back, after epoch ${epochs.length}.`);
}

new ResizeObserver(() => { if (losses.length > 0) showCurves(); }).observe(element("train"));
enter("ready");
loadNetwork();
