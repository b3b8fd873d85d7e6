// Trains. The page sends { start: settings }, { pause: true } and { resume: true }. After the answer
// { paused: true } there are no more steps.

import { loadData } from "./data.js";
import { loadProgram } from "./program.js";
import { keepRun, readRun } from "./store.js";

/** As in the tutorial. "Go on" after them trains for as many again. */
const EPOCHS = 10;
const TEST_LENGTH = 10000;
/** Test images evaluated between two looks at the page's messages. */
const PIECE = 500;
/** Milliseconds of steps between two reports: drawing them takes time from the threads. */
const REPORT_EVERY = 250;
const MISTAKES = 24;

let program = null;
let data = null;
let programPromise = null;
/** Settings, history and losses; its `state` is that of the last complete epoch. */
let run = null;
let training = 0;
/** The rest of the epoch, in steps. */
let left = 0;
let epochLoss = 0;
/** Counts commands: a loop ends when there is another one. */
let command = 0;

onmessage = ({ data: message }) => {
  command++;
  if (message.pause) postMessage({ paused: true }); // the loop waits, and will end
  if (message.start) attempt(() => start(message.start));
  if (message.resume) attempt(resume);
};
attempt(recall);

async function attempt(task) {
  try {
    await task();
  } catch (error) {
    postMessage({ problem: error.message });
  }
}

/** Tells the page of a run that it has begun before. */
async function recall() {
  const found = await readRun();
  if (!found) return;
  await prepare();
  if (command > 0) return; // the visitor was faster
  training = program.restore(found.state);
  run = found;
  postMessage({ recalled: { ...run, state: null }, parameters: program.params(training) });
}

/** Loads the program, once. */
async function prepare() {
  const threads = navigator.hardwareConcurrency ?? 1;
  programPromise ??= loadProgram(location.search, { threads });
  try {
    program = await programPromise;
  } catch (error) {
    programPromise = null; // the next attempt may have a network
    throw error;
  }
  postMessage({ kind: program.kind });
}

async function start(settings) {
  const mine = command;
  await load();
  if (mine !== command) return;
  if (training) program.exports.training_drop(training);
  training = 0;
  training = program.train(settings);
  run = { settings, target: EPOCHS, epochs: [], losses: [], stepsPerEpoch: 0, mistakes: null };
  left = 0;
  await train();
}

async function resume() {
  const mine = command;
  await load();
  if (mine !== command) return;
  if (left === 0 && run.epochs.length >= run.target) run.target += EPOCHS;
  await train();
}

async function load() {
  await prepare();
  data ??= await loadData(program, part => postMessage({ loaded: part }));
}

async function train() {
  const mine = command;
  let rate = 0; // steps per millisecond
  while (left > 0 || run.epochs.length < run.target) {
    if (left === 0) {
      left = program.exports.training_start_epoch(training, data.train);
      run.stepsPerEpoch = left;
      run.losses.length = run.epochs.length * left; // without those of an epoch that was lost
      epochLoss = 0;
    }
    const losses = [], begin = performance.now();
    do {
      losses.push(program.exports.training_step(training, data.train));
    } while (losses.length < left && performance.now() < begin + REPORT_EVERY);
    left -= losses.length;
    const now = losses.length / (performance.now() - begin);
    rate = rate ? 0.9 * rate + 0.1 * now : now;
    run.losses.push(...losses);
    epochLoss += losses.reduce((sum, loss) => sum + loss, 0);
    postMessage({ losses, left, rate, stepsPerEpoch: run.stepsPerEpoch });
    if (!losses.every(Number.isFinite)) {
      throw new Error("The loss is no longer a number. Start over with a smaller learning rate.");
    }
    if (left === 0) await endEpoch();
    await nextTask();
    if (mine !== command) return;
  }
  postMessage({ finished: run.epochs.length });
}

/** Evaluates the network, keeps the run, and reports. */
async function endEpoch() {
  const { exports } = program;
  const labels = program.bytes(exports.dataset_labels(data.test), TEST_LENGTH).slice();
  const images = exports.dataset_images(data.test);
  let loss = 0, wrong = 0;
  const mistakes = [];
  for (let first = 0; first < TEST_LENGTH; first += PIECE) {
    const piece = program.evaluate(training, data.test, first, PIECE);
    loss += piece.loss * PIECE / TEST_LENGTH;
    piece.digits.forEach((digit, i) => {
      const label = labels[first + i];
      if (digit === label) return;
      wrong++;
      if (mistakes.length < MISTAKES) {
        const pixels = program.bytes(images + (first + i) * 784, 784).slice();
        mistakes.push({ label, digit, pixels });
      }
    });
    postMessage({ tested: (first + PIECE) / TEST_LENGTH });
  }
  const accuracy = 1 - wrong / TEST_LENGTH;
  run.epochs.push({ trainLoss: epochLoss / run.stepsPerEpoch, loss, accuracy });
  run.mistakes = mistakes;
  run.state = program.save(training);
  const kept = await keepRun(run);
  const parameters = program.params(training);
  postMessage({ epochs: run.epochs, mistakes, wrong, kept, parameters }, [parameters.buffer]);
}

/** Lets the page's messages arrive. */
function nextTask() {
  return new Promise(resolve => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
}
