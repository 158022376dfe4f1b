"use strict";
// What the page computes anew when a control is moved, in nats; a test compares every function with klrl.kl.
const range = (n, low, high) => Array.from({length: n}, (_, i) => low + (high - low) * i / (n - 1));
const sum = x => x.reduce((a, b) => a + b, 0);
const fixed = (x, digits = 3) => x.toFixed(digits);

const entropyOf = p => -sum(p.map(x => x > 0 ? x * Math.log(x) : 0));
const klCategorical = (p, q) => sum(p.map((x, i) => x > 0 ? x * Math.log(x / q[i]) : 0));
const klCoin = (p, q) => klCategorical([p, 1 - p], [q, 1 - q]);
// KL(N(m, s²) ‖ N(M, S²))
const klGaussian = (m, s, M, S) => 0.5 * ((s * s + (m - M) ** 2) / (S * S) - 1) + Math.log(S / s);
const density = (x, m, s) => Math.exp(-0.5 * ((x - m) / s) ** 2) / (s * Math.sqrt(2 * Math.PI));

function normalised(logs) {
  const top = Math.max(...logs), weights = logs.map(x => Math.exp(x - top)), total = sum(weights);
  return logs.map(x => x - top - Math.log(total));
}

// KL of two densities over the cells of a grid, from their logarithms.
function klCells(logP, logQ) {
  const p = normalised(logP), q = normalised(logQ);
  return sum(p.map((x, i) => x > -700 ? Math.exp(x) * (x - q[i]) : 0));
}
const logGaussian = (grid, m, s) => grid.map(x => -0.5 * ((x - m) / s) ** 2 - Math.log(s));

// Where a rising function is 0 between two ends.
function root(f, low, high) {
  for (let i = 0; i < 200; i++) {
    const middle = (low + high) / 2;
    if (f(middle) > 0) high = middle; else low = middle;
  }
  return (low + high) / 2;
}

// The least and the largest probability q with KL(p‖q) at most delta, of an action with probability p.
const coinWithin = (p, delta) => [p - root(x => klCoin(p, p - x) - delta, 0, p), p + root(x => klCoin(p, p + x) - delta, 0, 1 - p)];

// Standard deviations S with KL at most delta from or to N(0, 1), means equal.
function stdWithin(kl, delta) {
  const along = sign => Math.exp(sign * root(x => kl(0, Math.exp(sign * x)) - delta, 0, 5));
  return [along(-1), along(1)];
}

// The closed curve kl(m, S) = delta around N(0, 1); kl takes the mean and standard deviation of the other Gaussian.
function region(kl, delta, n = 60) {
  const [low, high] = stdWithin(kl, delta).map(Math.log), stds = range(2 * n + 1, -1, 1).map(u => (low + high) / 2 + (high - low) / 2 * Math.sin(u * Math.PI / 2));
  const right = stds.map(x => Math.exp(x)).map(S => kl(0, S) >= delta ? 0 : root(m => kl(m, S) - delta, 0, 20));
  const y = stds.map(Math.exp);
  return {x: [...right, ...right.map(x => -x).reverse(), right[0]], y: [...y, ...[...y].reverse(), y[0]]};
}
const oldToNew = (m, S) => klGaussian(0, 1, m, S), newToOld = (m, S) => klGaussian(m, S, 0, 1);
const ellipse = delta => {
  const turn = range(121, 0, 2 * Math.PI);
  return {x: turn.map(t => Math.sqrt(2 * delta) * Math.cos(t)), y: turn.map(t => Math.exp(Math.sqrt(delta) * Math.sin(t)))};
};

// Reward -(a - goal)² of a Gaussian policy N(0, s²): its mean has the gradient [2 goal, -2 s²] by mean and log std; the
// Fisher matrix is diagonal, 1 / s² and 2.
const plainGradient = (s, goal) => [2 * goal, -2 * s * s];
const naturalGradient = (s, goal) => [2 * goal * s * s, -s * s];
const klOfStep = (s, [dm, dl], size) => klGaussian(0, s, size * dm, s * Math.exp(size * dl));
const sizeAt = (s, d, delta) => root(size => klOfStep(s, d, size) - delta, 0, 2 / Math.hypot(d[0] / s, d[1]));
const gainOf = (s, [dm, dl], size, goal) => goal ** 2 + s * s - (goal - size * dm) ** 2 - (s * Math.exp(size * dl)) ** 2;

const LIVE = {
  // A coin that shows heads with p, and the code for one that shows heads with q; in bits.
  code({p, q}) {
    const grid = range(197, 0.01, 0.99), bits = x => x / Math.LN2, H = bits(entropyOf([p, 1 - p]));
    const cost = grid.map(x => H + bits(klCoin(p, x))), kl = klCoin(p, q);
    return {
      columns: {
        cost: {x: grid, y: cost}, entropy: {x: [0, 1], y: [H, H]}, gap: {x: [q], low: [H], high: [H + bits(kl)]},
        here: {x: [q], y: [H + bits(kl)]},
      },
      words: `H(P) = ${fixed(H)} bits; H(P, Q) = ${fixed(H + bits(kl))} bits; KL(P‖Q) = ${fixed(bits(kl))} bits per toss = ${fixed(kl)} nats`,
    };
  },
  // Both directions between a coin that shows heads with p and all others.
  directions({p, q}) {
    const grid = range(299, 0.005, 0.995), forward = klCoin(p, q), reverse = klCoin(q, p);
    return {
      columns: {
        forward: {x: grid, y: grid.map(x => klCoin(p, x))}, reverse: {x: grid, y: grid.map(x => klCoin(x, p))},
        here: {x: [q, q], y: [forward, reverse]}, same: {x: [p], y: [0]},
      },
      words: `KL(P‖Q) = ${fixed(forward)} nats; KL(Q‖P) = ${fixed(reverse)} nats`,
    };
  },
  // A Gaussian against the mixture, whose log-density on the grid is given.
  fits({mean, std}, {grid, log_p}) {
    const log_q = logGaussian(grid, mean, std), shown = grid.filter(x => Math.abs(x) <= 8);
    return {
      columns: {q: {x: shown, y: shown.map(x => density(x, mean, std))}, here: {x: [mean], y: [std]}},
      words: `forward KL(p‖q) = ${fixed(klCells(log_p, log_q))} nats; reverse KL(q‖p) = ${fixed(klCells(log_q, log_p))} nats`,
    };
  },
  // What a KL of delta and a clip of epsilon allow two actions, by the old probability of one.
  probabilities({delta, epsilon}, {deltas}) {
    const grid = range(197, 0.01, 0.99), d = deltas[delta], within = grid.map(p => coinWithin(p, d));
    const half = coinWithin(0.5, d), rare = coinWithin(0.01, d), upper = grid.map(p => Math.min(1, p * (1 + epsilon)));
    const inner = grid.filter(p => p * (1 + epsilon) < 0.999);
    return {
      columns: {
        within: {x: grid, low: within.map(x => x[0]), high: within.map(x => x[1])},
        low: {x: grid, y: grid.map(p => p * (1 - epsilon))}, high: {x: grid, y: upper},
        edge: {x: inner, y: inner.map(p => klCoin(p, p * (1 + epsilon)))}, bound: {x: [0, 1], y: [d, d]},
      },
      words: `Within ${d} nats, 0.5 may become ${fixed(half[0])} to ${fixed(half[1])}, and 0.01 may become ${fixed(rare[0], 4)} to ${fixed(rare[1], 4)}. `
        + `The clip allows ${fixed(0.5 * (1 - epsilon))} to ${fixed(0.5 * (1 + epsilon))}, and ${fixed(0.01 * (1 - epsilon), 4)} to ${fixed(0.01 * (1 + epsilon), 4)}.`,
    };
  },
  // Two Gaussians: the old policy N(0, 1), the new one, and the regions around the old one.
  gaussians({mean, std, delta}, {deltas}) {
    const grid = range(241, -4, 4), d = deltas[delta], kl = oldToNew(mean, std);
    return {
      columns: {
        new: {x: grid, y: grid.map(x => density(x, mean, std))}, here: {x: [mean], y: [std]},
        forward: region(oldToNew, d), reverse: region(newToOld, d), ellipse: ellipse(d),
      },
      words: `KL(old‖new) = ${fixed(kl, 4)} nats, ${kl <= d ? "inside" : "outside"} the region of ${d} nats; KL(new‖old) = ${fixed(newToOld(mean, std), 4)} nats`,
    };
  },
  // One step of the plain and of the natural gradient from N(0, s²).
  gradients({s}, {stds, goal, rate, delta, sizes}) {
    const std = stds[s], ways = {plain: plainGradient(std, goal), natural: naturalGradient(std, goal)}, columns = {}, gains = {};
    for (const [name, d] of Object.entries(ways)) {
      const size = sizeAt(std, d, delta);
      columns[name] = {x: [0, size * d[0]], y: [std, std * Math.exp(size * d[1])]};
      gains[name] = gainOf(std, d, size, goal);
    }
    const around = region(oldToNew, delta), kl = klOfStep(std, ways.plain, rate);
    columns.region = {x: around.x.map(x => std * x), y: around.y.map(y => std * y)};
    columns.rate = {x: sizes, y: sizes.map(x => klOfStep(x, plainGradient(x, goal), rate))};
    columns.here = {x: [std], y: [kl]};
    return {
      columns,
      words: `With ${delta} nats to spend, the natural gradient gains ${fixed(gains.natural, 4)} of reward, the plain one ${fixed(gains.plain, 4)}. `
        + `A plain step with learning rate ${rate} would spend ${short(kl)} nats.`,
    };
  },
};
