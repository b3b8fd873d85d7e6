// Reads the trained weights, a safetensors file whose names start with the number of the layer.

const ORDER = ["0", "3", "7", "9"].flatMap(layer => [`${layer}/kernel`, `${layer}/bias`]);

/** All parameters, one after the other. */
export async function fetchWeights() {
  const address = new URL("weights.safetensors", import.meta.url);
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} cannot be loaded (${answer.status})`);
  const buffer = await answer.arrayBuffer();
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const parts = ORDER.map(name => {
    const { dtype, data_offsets: [from, to] } = header[name];
    const content = buffer.slice(start + from, start + to);
    return dtype === "F32"
      ? new Float32Array(content)
      : Float32Array.from(new Uint16Array(content), halfToNumber);
  });
  const params = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    params.set(part, offset);
    offset += part.length;
  }
  return params;
}

/** Decodes IEEE 754 binary16, except for infinities and NaN. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}
