// Loads the WebAssembly program that suits the browser, and wraps its functions.

/** Tiny programs with one instruction that only some browsers know, the best first. */
const PROBES = {
  relaxed: [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253,
    15, 65, 2, 253, 15, 253, 128, 2, 11,
  ],
  simd128: [
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253,
    15, 253, 98, 11,
  ],
};
const NAMES = { relaxed: "relaxed SIMD", simd128: "SIMD", none: "no SIMD" };
const PAGE_BYTES = 65536;
/** The memory that programs with threads are linked for. */
const SHARED = { initial: 2 ** 27 / PAGE_BYTES, maximum: 2 ** 28 / PAGE_BYTES, shared: true };
/** More threads than this have too little to do in a step. */
const MAX_THREADS = 8;

/**
 * The program for this browser. The page's address may ask for less: `?simd=none`, `?threads=1`.
 * `threads` are possible in a worker only, and only if the server isolates the page.
 */
export async function loadProgram(search, { threads: wanted = 1 } = {}) {
  const parameters = new URLSearchParams(search);
  const knows = name => WebAssembly.validate(Uint8Array.from(PROBES[name]));
  const simd = parameters.get("simd") ?? Object.keys(PROBES).find(knows) ?? "none";
  const limit = Number(parameters.get("threads")) || MAX_THREADS;
  const threads = globalThis.crossOriginIsolated && simd !== "none" ? Math.min(wanted, limit) : 1;
  const address = new URL(`${threads > 1 ? "threads" : "program"}-${simd}.wasm`, import.meta.url);
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} cannot be loaded (${answer.status})`);
  const module = await compile(answer);
  const kind = `${NAMES[simd]}, ${threads === 1 ? "1 thread" : `${threads} threads`}`;
  if (threads === 1) {
    const { exports } = await WebAssembly.instantiate(module);
    return new Program(exports, exports.memory, kind);
  }
  const memory = new WebAssembly.Memory(SHARED);
  const workers = await Promise.all(Array.from({ length: threads }, () => startThread()));
  const spawn = (id, start) => workers[id - 1].postMessage({ module, memory, id, start });
  const { exports } = await WebAssembly.instantiate(module, system(memory, threads, spawn));
  exports._initialize();
  return new Program(exports, memory, kind);
}

/** Compiles while it loads, if the server names the type. */
async function compile(answer) {
  if (answer.headers.get("Content-Type") === "application/wasm") {
    return WebAssembly.compileStreaming(answer);
  }
  return WebAssembly.compile(await answer.arrayBuffer());
}

/** A worker that waits for its thread. It must run before: a program that waits starts none. */
function startThread() {
  const worker = new Worker(new URL("thread.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onmessage = () => resolve(worker);
    worker.onerror = () => reject(new Error("a thread cannot be started"));
  });
}

/** The part of WASI that Rust's standard library uses in a program with threads. */
export function system(memory, threads, spawn) {
  const environment = new TextEncoder().encode(`RAYON_NUM_THREADS=${threads}\0`);
  const view = () => new DataView(memory.buffer);
  const [OK, BAD_FILE] = [0, 8];
  let started = 0;
  return {
    env: { memory },
    wasi: {
      "thread-spawn": start => {
        started++;
        spawn(started, start);
        return started;
      },
    },
    wasi_snapshot_preview1: {
      environ_sizes_get(count, size) {
        view().setUint32(count, 1, true);
        view().setUint32(size, environment.length, true);
        return OK;
      },
      environ_get(entries, text) {
        view().setUint32(entries, text, true);
        new Uint8Array(memory.buffer).set(environment, text);
        return OK;
      },
      clock_time_get(_clock, _precision, time) {
        view().setBigUint64(time, BigInt(Math.round(performance.now() * 1e6)), true);
        return OK;
      },
      fd_write: () => BAD_FILE,
      sched_yield: () => OK,
      proc_exit: code => {
        throw new Error(`the program ended with code ${code}`);
      },
    },
  };
}

/** The functions of `exports.rs`, with its memory. */
class Program {
  constructor(exports, memory, kind) {
    Object.assign(this, { exports, memory, kind });
  }

  bytes(start, length) {
    return new Uint8Array(this.memory.buffer, start, length);
  }

  floats(start, length) {
    return new Float32Array(this.memory.buffer, start, length);
  }

  /** A data set of two files, given as functions that write them to memory. */
  async dataset(images, labels) {
    const place = async ({ length, write }) => {
      const start = this.exports.allocate(length);
      try {
        await write((bytes, offset) => this.bytes(start + offset, bytes.length).set(bytes));
      } catch (error) {
        this.exports.release(start, length);
        throw error;
      }
      return [start, length];
    };
    const [first, second] = [await place(images), await place(labels)];
    return filled(this.exports.dataset_new(...first, ...second), "the data are damaged");
  }

  /** A network that recognizes one image at a time. */
  network(params) {
    const network = filled(this.exports.network_new(), "no network");
    const image = this.exports.allocate(4 * 28 * 28), logProbs = this.exports.allocate(4 * 10);
    const target = () =>
      this.floats(this.exports.network_params(network), this.exports.params_len());
    target().set(params);
    return {
      replace: params => target().set(params),
      probabilities: pixels => {
        this.floats(image, pixels.length).set(pixels);
        this.exports.network_predict(network, image, logProbs);
        return Array.from(this.floats(logProbs, 10), Math.exp);
      },
    };
  }

  train({ seed, rate, batch }) {
    return filled(this.exports.training_new(seed, rate, batch), "these settings are impossible");
  }

  params(training) {
    return this.floats(this.exports.training_params(training), this.exports.params_len()).slice();
  }

  save(training) {
    const length = this.exports.state_len(), start = this.exports.training_save(training);
    const state = this.bytes(start, length).slice();
    this.exports.release(start, length);
    return state;
  }

  restore(state) {
    const start = this.exports.allocate(state.length);
    this.bytes(start, state.length).set(state);
    const training = this.exports.training_restore(start, state.length);
    this.exports.release(start, state.length);
    return filled(training, "the saved training cannot be read");
  }

  /** The mean loss on some images, and the most probable digit of each. */
  evaluate(training, data, first, length) {
    const start = this.exports.allocate(length);
    const loss = this.exports.training_evaluate(training, data, first, start, length);
    const digits = this.bytes(start, length).slice();
    this.exports.release(start, length);
    return { loss, digits };
  }
}

function filled(pointer, problem) {
  if (pointer === 0) throw new Error(problem);
  return pointer;
}
