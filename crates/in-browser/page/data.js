// Fetches MNIST and unpacks it. The browser's cache keeps the packed files.

const CACHE = "mnist-1";
/** Packed and unpacked bytes of each file; servers do not always tell the first. */
const FILES = {
  "train-images-idx3-ubyte": [9719438, 47040016],
  "train-labels-idx1-ubyte": [28857, 60008],
  "t10k-images-idx3-ubyte": [1616508, 7840016],
  "t10k-labels-idx1-ubyte": [4517, 10008],
};
const TOTAL = Object.values(FILES).reduce((sum, [packed]) => sum + packed, 0);

/** Both data sets of MNIST, in the memory of a program. */
export async function loadData(program, onProgress) {
  let loaded = 0;
  const file = name => ({
    length: FILES[name][1],
    write: place => unpack(name, place, count => onProgress((loaded += count) / TOTAL)),
  });
  const dataset = part =>
    program.dataset(file(`${part}-images-idx3-ubyte`), file(`${part}-labels-idx1-ubyte`));
  return { train: await dataset("train"), test: await dataset("t10k") };
}

async function unpack(name, place, onBytes) {
  const body = (await request(new URL(`data/${name}.gz`, import.meta.url))).body;
  const counter = new TransformStream({
    transform(chunk, controller) {
      onBytes(chunk.length);
      controller.enqueue(chunk);
    },
  });
  let offset = 0;
  const reader = body.pipeThrough(counter).pipeThrough(new DecompressionStream("gzip")).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (offset + value.length > FILES[name][1]) break;
    place(value, offset);
    offset += value.length;
  }
  if (offset !== FILES[name][1]) throw new Error(`${name} is damaged`);
}

/** An answer from the cache or the server. Private windows may have no cache. */
async function request(address) {
  const cache = await globalThis.caches?.open(CACHE).catch(() => undefined);
  const kept = await cache?.match(address);
  if (kept) return kept;
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} cannot be loaded (${answer.status})`);
  cache?.put(address, answer.clone()).catch(() => undefined);
  return answer;
}
