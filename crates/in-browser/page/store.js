// Keeps the run in IndexedDB, so that it goes on after the page was closed.

const [NAME, STORE, KEY] = ["mnist-training", "runs", "run"];

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function inStore(mode, use) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = use(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

/** The kept run. Without IndexedDB, as in some private windows, there is none. */
export const readRun = () =>
  inStore("readonly", store => store.get(KEY)).catch(() => undefined);

/** Keeps a run, and returns whether that was possible. */
export const keepRun = run =>
  inStore("readwrite", store => store.put(run, KEY)).then(() => true, () => false);
