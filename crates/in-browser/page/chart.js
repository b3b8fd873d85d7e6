// Draws the loss of every step and the accuracy after every epoch, one above the other.

const [LEFT, RIGHT, TOP, BOTTOM] = [44, 14, 8, 22];
const LOSS_HEIGHT = 150, ACCURACY_HEIGHT = 90, GAP = 24;
const LOSS_TICKS = [3, 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001];
/** Weight of a step in the smoothed loss. */
const NEW = 0.03;
const MAX_POINTS = 500;

/** The smoothed losses, thinned out: [step, loss] with steps counted from 1. */
function smoothed(losses) {
  const every = Math.ceil(losses.length / MAX_POINTS);
  const points = [];
  let [sum, weight] = [0, 0];
  losses.forEach((loss, index) => {
    sum += NEW * (loss - sum);
    weight += NEW * (1 - weight);
    const isLast = index + 1 === losses.length;
    if (index % every === 0 || isLast) points.push([index + 1, sum / weight]);
  });
  return points;
}

const number = value => value.toFixed(1);
const text = (x, y, content, rest) =>
  `<text x="${number(x)}" y="${number(y)}" ${rest}>${content}</text>`;
const across = (x1, x2, y) =>
  `<path class="grid" d="M${number(x1)},${number(y)}H${number(x2)}"/>`;
const curve = points => {
  const pairs = points.map(([x, y]) => `${number(x)},${number(y)}`);
  return `<polyline class="curve" points="${pairs.join(" ")}"/>`;
};

/**
 * Draws `losses`, one per step, and `accuracies`, one per epoch, as wide as the element is.
 * Returns the latest smoothed loss.
 */
export function drawChart(svg, losses, accuracies, stepsPerEpoch) {
  const width = svg.clientWidth, height = TOP + LOSS_HEIGHT + GAP + ACCURACY_HEIGHT + BOTTOM;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const epochs = Math.max(1, Math.ceil(losses.length / stepsPerEpoch));
  const right = epoch => LEFT + (width - LEFT - RIGHT) * epoch / epochs;
  const points = smoothed(losses);

  // Loss, with a logarithmic axis.
  const lowest = Math.min(...points.map(([, loss]) => loss));
  const floor = LOSS_TICKS.find(tick => tick < lowest) ?? LOSS_TICKS.at(-1);
  const part = loss => Math.log(LOSS_TICKS[0] / loss) / Math.log(LOSS_TICKS[0] / floor);
  const down = loss => TOP + LOSS_HEIGHT * Math.min(Math.max(part(loss), 0), 1);
  const ticks = LOSS_TICKS.filter(tick => tick >= floor);

  // Accuracy.
  const bottom = TOP + LOSS_HEIGHT + GAP + ACCURACY_HEIGHT;
  const least = Math.min(0.97, ...accuracies);
  const from = least < 0.9 ? 0 : least < 0.97 ? 0.9 : 0.97;
  const up = accuracy => bottom - ACCURACY_HEIGHT * (accuracy - from) / (1 - from);
  const dots = accuracies.map((accuracy, i) => [right(i + 1), up(accuracy), accuracy]);
  const percent = value => `${(100 * value).toFixed(2)} %`;
  const [x, y, latest] = dots.at(-1) ?? [];

  const every = Math.ceil(epochs / Math.max(1, Math.floor((width - LEFT - RIGHT) / 34)));
  svg.innerHTML = [
    ...ticks.map(tick => across(LEFT, width - RIGHT, down(tick))
      + text(LEFT - 8, down(tick) + 4, tick, 'text-anchor="end"')),
    ...[from, 1].map(value => across(LEFT, width - RIGHT, up(value))
      + text(LEFT - 8, up(value) + 4, `${Math.round(100 * value)} %`, 'text-anchor="end"')),
    ...Array.from({ length: epochs + 1 }, (_, epoch) => epoch).filter(epoch => epoch % every === 0)
      .map(epoch => text(right(epoch), bottom + 17, epoch, 'text-anchor="middle"')),
    curve(points.map(([step, loss]) => [right(step / stepsPerEpoch), down(loss)])),
    curve(dots),
    ...dots.map(([x, y]) => `<circle cx="${number(x)}" cy="${number(y)}" r="4"/>`),
    latest && text(x - 8, y + 20, percent(latest), 'class="value" text-anchor="end"'),
  ].join("");
  const told = accuracies.map((accuracy, i) => `epoch ${i + 1}: ${percent(accuracy)}`).join(", ");
  svg.setAttribute("aria-label", `Training loss and test accuracy. ${told}`);
  return points.at(-1)?.[1];
}
