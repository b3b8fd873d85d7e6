"use strict";
// Prepares a drawing as `prepare_digit` does it with a clean one. A picture is { height, width,
// data }, with numbers from 0 (black) to 1 (white), row by row. A page has this before its own
// script.

const INK_THRESHOLD = 0.25; // weaker ink does not extend the bounding box, and stays gray

/** Turns a drawing { height, width, data } into a 28 × 28 image; null if it is empty. */
function prepare(drawing) {
  const ink = cropToInk(drawing);
  return ink && centered(atFullStrength(fit(ink, 20)));
}

function cropToInk({ height, width, data }) {
  let top = height, bottom = -1, left = width, right = -1;
  data.forEach((value, index) => {
    if (value <= INK_THRESHOLD) return;
    const y = Math.floor(index / width), x = index % width;
    [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    [left, right] = [Math.min(left, x), Math.max(right, x)];
  });
  if (bottom < 0) return null;
  const rows = [];
  for (let y = top; y <= bottom; y++) {
    rows.push(...data.subarray(y * width + left, y * width + right + 1));
  }
  return { height: bottom - top + 1, width: right - left + 1, data: Float32Array.from(rows) };
}

function fit(picture, side) {
  const scale = side / Math.max(picture.height, picture.width);
  const scaled = length => Math.max(1, Math.round(length * scale));
  const narrowed = transposed(resizeRows(picture, scaled(picture.width)));
  return transposed(resizeRows(narrowed, scaled(picture.height)));
}

/** Each pixel is the mean of the area it covers. */
function resizeRows({ height, width, data }, newWidth) {
  const ratio = width / newWidth;
  const resized = new Float32Array(height * newWidth);
  resized.forEach((_, index) => {
    const start = (index % newWidth) * ratio, end = (index % newWidth + 1) * ratio;
    const row = Math.floor(index / newWidth) * width;
    let sum = 0;
    for (let x = Math.floor(start); x < Math.min(Math.ceil(end), width); x++) {
      sum += data[row + x] * (Math.min(end, x + 1) - Math.max(start, x));
    }
    resized[index] = sum / ratio;
  });
  return { height, width: newWidth, data: resized };
}

/** Divides by the strongest ink within two pixels: a thin stroke has become gray. */
function atFullStrength({ height, width, data }) {
  const weakest = INK_THRESHOLD * Math.max(...data);
  const strengthened = data.map((value, index) => {
    const y = Math.floor(index / width), x = index % width;
    let strongest = weakest;
    for (let v = Math.max(y - 2, 0); v <= Math.min(y + 2, height - 1); v++) {
      const row = data.subarray(v * width, (v + 1) * width);
      strongest = Math.max(strongest, ...row.subarray(Math.max(x - 2, 0), x + 3));
    }
    return value / strongest;
  });
  return { height, width, data: strengthened };
}

function transposed({ height, width, data }) {
  const source = i => (i % height) * width + Math.floor(i / height);
  return { height: width, width: height, data: data.map((_, i) => data[source(i)]) };
}

/** Places a digit on 28 × 28 pixels, its center of mass on pixel 14. */
function centered({ height, width, data }) {
  let mass = 0, momentY = 0, momentX = 0;
  data.forEach((value, index) => {
    mass += value;
    momentY += value * Math.floor(index / width);
    momentX += value * (index % width);
  });
  // 0.499 instead of 0.5: the center of symmetric strokes is halfway between two pixels, and is
  // then rounded the same way despite rounding errors.
  const offset = (center, length) =>
    Math.min(Math.max(Math.floor(14 - center + 0.499), 0), 28 - length);
  const top = offset(momentY / mass, height), left = offset(momentX / mass, width);
  const image = new Float32Array(28 * 28);
  data.forEach((value, index) => {
    image[(top + Math.floor(index / width)) * 28 + left + index % width] = value;
  });
  return image;
}
