// Fetches the trained weights, whose names start with the number of the layer.

const ORDER = ["0", "3", "7", "9"].flatMap(layer => [`${layer}/kernel`, `${layer}/bias`]);

/** All parameters, one after the other. */
export async function fetchWeights() {
  const address = new URL("weights.safetensors", import.meta.url);
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} cannot be loaded (${answer.status})`);
  const arrays = readParameters(new Uint8Array(await answer.arrayBuffer())); // of parameters.js
  const parts = ORDER.map(name => arrays[name]);
  const params = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    params.set(part, offset);
    offset += part.length;
  }
  return params;
}
