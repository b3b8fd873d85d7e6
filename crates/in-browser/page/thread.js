// A thread of the program, which never ends.

import { system } from "./program.js";

onmessage = async ({ data: { module, memory, id, start } }) => {
  const spawn = () => {
    throw new Error("a thread starts no others");
  };
  const { exports } = await WebAssembly.instantiate(module, system(memory, 1, spawn));
  exports.wasi_thread_start(id, start);
};
postMessage("ready");
