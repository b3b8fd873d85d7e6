// Reads trained parameters: the panel's and the training page's.

/** The arrays in the bytes of a safetensors file, of single or half precision, by their names. */
function readParameters(bytes) {
  const { buffer, byteOffset } = bytes;
  const start = 8 + Number(new DataView(buffer, byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  delete header.__metadata__;
  const arrays = Object.entries(header).map(([name, { dtype, data_offsets: [from, to] }]) => {
    const content = bytes.slice(start + from, start + to).buffer;
    const array = dtype === "F32"
      ? new Float32Array(content)
      : Float32Array.from(new Uint16Array(content), halfToNumber);
    return [name, array];
  });
  return Object.fromEntries(arrays);
}

/** Decodes IEEE 754 binary16, except for infinities and NaN. */
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}
