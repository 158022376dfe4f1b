/* Epochs of minibatch steps on small networks, outputs, and products with their Jacobian: what klrl computes with numpy,
   less the arrays in between.

   A network computes h_k = f(W_k h_{k-1} + b_k) with f = tanh or max(., 0), and no f in its last layer. Its parameters
   theta [P] are one vector in the order of network.parameters(): free ones (log_std), then W_1, b_1, W_2, b_2, ...
   Activations are [features, rows]: a register holds one feature of VL rows, so nothing is summed across a register.
   A minibatch is taken in blocks of at most BLOCK rows, whose activations stay in the cache.

   The file includes itself once for every level of processors. NaN and infinity come through as in numpy, so it must
   not be compiled with -ffast-math. */
#ifndef LEVEL
#ifdef __FAST_MATH__
#error "inf and NaN have to be seen: no -ffast-math"
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LAYERS 16
#define BLOCK 64
#define GLUE_(name, level) name##_##level
#define GLUE(name, level) GLUE_(name, level)
#define N(name) GLUE(name, LEVEL) /* the name of a function or type at this level */
#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t i4 __attribute__((vector_size(16)));
#ifdef __clang__
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif

typedef struct { /* a network, and Adam's moments of its gradient */
  int64_t layers, sizes[MOST_LAYERS + 1], own, relu, steps;
  double rate;
  float *theta, *mean, *square;
} Network;

typedef struct { /* samples [n, ...], and the order in which they are taken, `batch` at a time */
  int64_t n, batch, width, mask; /* length of a row of observations; column where the mask begins, 0 without one */
  const int64_t *order, *choices;
  const float *observations, *actions, *log_prob, *advantage, *returns, *old, *old_log_std;
} Samples;

enum { PLAIN, CLIP, SPO, ROLLBACK };

typedef struct { /* vf_coef E[(V - V_target)^2] - E[surrogate - beta KL] - ent_coef E[H] is minimised; and Adam's */
  int64_t surrogate, categorical, d; /* d: numbers in an action, or choices */
  double epsilon, slope, beta, vf_coef, ent_coef, clip_range, log_std_init, max_norm, beta1, beta2, eps;
} Loss;

typedef struct { /* a network's arrays for one block of rows */
  float *h[MOST_LAYERS + 1];                      /* inputs of every layer and, last, the outputs, [size, rows] */
  float *g, *other, *x, *t;                       /* d loss / d h, [size, rows]; inputs and an h, [rows, size] */
  float *gradient;                                /* d loss / d theta, [P] */
  float *share, *A, *log_old, *log_new, *weight;  /* of the policy's loss, [rows] */
  float *action, *old, *old_s, *s, *std, *z, *q;  /* the same, [d, rows] */
} Work;

typedef struct {
  float *base;
  size_t used;
} Arena;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static float *take(Arena *arena, int64_t n) {
  size_t at = arena->used;
  arena->used += (size_t)round_up(n + 16, 16); /* a register may be read beyond the end */
  return arena->base ? arena->base + at : NULL;
}

static int64_t size_of(const Network *net) {
  int64_t P = net->own;
  for (int64_t k = 0; k < net->layers; k++) P += (net->sizes[k] + 1) * net->sizes[k + 1];
  return P;
}

/* Arrays of one block that its derivatives are made of. */
static void keep(Arena *arena, const Network *net, Work *w) {
  w->x = take(arena, round_up(net->sizes[0], 16) * BLOCK);
  for (int64_t k = 0; k <= net->layers; k++) w->h[k] = take(arena, net->sizes[k] * BLOCK);
}

static void lay_out(Arena *arena, const Network *net, Work *w, int64_t d) {
  int64_t most = 1;
  for (int64_t k = 0; k <= net->layers; k++) most = net->sizes[k] > most ? net->sizes[k] : most;
  keep(arena, net, w);
  float **wide[] = {&w->g, &w->other, &w->t}, **rows[] = {&w->share, &w->A, &w->log_old, &w->log_new, &w->weight};
  float **fields[] = {&w->action, &w->old, &w->old_s, &w->s, &w->std, &w->z, &w->q};
  for (int i = 0; i < 3; i++) *wide[i] = take(arena, round_up(most, 16) * BLOCK);
  for (int i = 0; i < 5; i++) *rows[i] = take(arena, BLOCK);
  for (int i = 0; i < 7; i++) *fields[i] = take(arena, d * BLOCK);
  w->gradient = take(arena, size_of(net));
}

/* Arrays of one or two networks in zeroed memory, which is returned; NULL if there is none left. */
static void *prepare(const Network *actor, const Network *critic, Work *of_actor, Work *of_critic, int64_t d) {
  Arena arena = {NULL, 0};
  void *memory = NULL;
  for (int pass = 0; pass < 2; pass++) {
    if (actor) lay_out(&arena, actor, of_actor, d);
    if (critic) lay_out(&arena, critic, of_critic, 0);
    if (pass == 0 && !(memory = calloc(arena.used + 16, sizeof(float)))) return NULL;
    arena = (Arena){(float *)(((uintptr_t)memory + 63) / 64 * 64), 0};
  }
  return memory;
}

#define MR 4
#define LEVEL plain
#define VL 4
#define NV 2
#include "kernel.c"

#ifdef __x86_64__
#undef LEVEL
#undef VL
#define LEVEL avx2
#define VL 8
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "kernel.c"

#undef LEVEL
#undef VL
#undef NV
#define LEVEL avx512
#define VL 16
#define NV 4
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#endif
#include "kernel.c"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Version of the structures and functions, as in klrl/native/library.py. */
EXPORT int klrl_version(void) { return 3; }

/* The numbers in the memory that klrl_outputs takes, which keeps what derivatives at n rows are made of; or at 0. */
EXPORT int64_t klrl_room(const Network *net, int64_t n) {
  Arena arena = {NULL, 0};
  Work w;
  lay_out(&arena, net, &w, 0);
  for (int64_t from = 0; from < n; from += BLOCK) keep(&arena, net, &w);
  return (int64_t)arena.used;
}

/* The highest level of this processor: 0 plain, 1 avx2, 2 avx512. */
EXPORT int klrl_level(void) {
#ifdef __x86_64__
  __builtin_cpu_init();
  int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  int more = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx2 ? (more ? 2 : 1) : 0;
#else
  return 0;
#endif
}

#else /* ------------------------------------------- one level ------------------------------------------------------ */

typedef float N(vf) __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t N(vi) __attribute__((vector_size(4 * VL), aligned(4), may_alias));
#define vf N(vf)
#define vi N(vi)
#define AT(p) (*(vf *)(p))
#define READ(p) (*(const vf *)(p))
#define ALL(x) ((vf){0} + (float)(x)) /* the same number in all lanes; 0 + -0 is the only one that changes */
#define CHOOSE(condition, a, b) ((vf)(((condition) & (vi)(a)) | (~(condition) & (vi)(b))))

INLINE float N(sum)(vf x) {
  float s[VL];
  AT(s) = x;
  for (int half = VL / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) s[l] += s[l + half];
  return s[0];
}

/* x = n log 2 + r with an integer n and |r| <= log(2) / 2; returns r, and in n what shifts an exponent by n. */
INLINE vf N(reduce)(vf x, vi *n) {
  vf shifted = x * 1.44269504f + 12582912.0f; /* 1.5 2^23: the last bits are those of n */
  *n = (vi)shifted - 0x4B400000;
  vf whole = shifted - 12582912.0f;
  return x - whole * 0.693359375f + whole * 2.12194440e-4f; /* log 2 in two parts, the first times n is exact */
}

/* e^r - 1 = r + r^2 q(r) for |r| <= log(2) / 2; the relative error of the polynomial is below 2e-8. */
INLINE vf N(small_expm1)(vf r) {
  vf q = r * 1.38824922e-3f + 8.36664718e-3f;
  q = q * r + 4.16672044e-2f;
  q = q * r + 1.6666542e-1f;
  q = q * r + 4.9999997e-1f;
  return r * r * q + r;
}

INLINE vf N(power)(vi n) { return (vf)((n + 127) << 23); } /* 2^n, -127 < n < 128 */

/* e^x; measured: at most 1.1 ulp. */
INLINE vf N(exponential)(vf x) {
  vi n, half;
  x = CHOOSE(x > 89.0f, ALL(89.0f), CHOOSE(x < -105.0f, ALL(-105.0f), x));
  vf y = N(small_expm1)(N(reduce)(x, &n)) + 1.0f;
  half = n >> 1; /* 2^n may overflow where e^x does not */
  return y * N(power)(half) * N(power)(n - half);
}

/* e^x - 1 for -80 < x < 80. */
INLINE vf N(expm1_inside)(vf x) {
  vi n;
  vf y = N(small_expm1)(N(reduce)(x, &n)), scale = N(power)(n);
  return scale * y + (scale - 1.0f);
}

/* e^x - 1, infinite from x = 80 on: such a KL ends the epoch; measured: at most 1.7 ulp. */
INLINE vf N(expm1)(vf x) {
  vf y = N(expm1_inside)(CHOOSE(x < -40.0f, ALL(-40.0f), CHOOSE(x > 80.0f, ALL(80.0f), x)));
  return CHOOSE(x > 80.0f, ALL(INFINITY), y);
}

/* tanh |x| = (e^2|x| - 1) / (e^2|x| + 1), with the sign of x; measured: at most 2.5 ulp. */
INLINE vf N(tanh)(vf x) {
  vi sign = (vi)x & INT32_MIN;
  vf size = (vf)((vi)x ^ sign);
  vf t = N(expm1_inside)(2.0f * CHOOSE(size > 9.1f, ALL(9.1f), size)); /* from there on it is 1 */
  return (vf)((vi)(t / (t + 2.0f)) | sign);
}

/* C [mr, VL nv] = b + A B, or C + A B, for A [mr, K] and B [K, VL nv]; of the last register, `width` columns are written. */
INLINE void N(tile)(const int mr, const int nv, int64_t K, const float *A, int64_t row, int64_t column, const float *B,
                    int64_t ldb, float *C, int64_t ldc, const float *b, int add, int64_t width) {
  vf c[2 * MR][NV];
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < nv; j++) c[i][j] = ALL(b ? b[i] : 0.0f);
  for (int64_t k = 0; k < K; k++)
    for (int j = 0; j < nv; j++) {
      vf x = READ(B + k * ldb + j * VL);
      for (int i = 0; i < mr; i++) c[i][j] += A[i * row + k * column] * x;
    }
  for (int i = 0; i < mr; i++)
    for (int j = 0; j < nv; j++) {
      float *to = C + i * ldc + j * VL;
      if (width == VL || j < nv - 1) {
        if (add) c[i][j] += READ(to);
        AT(to) = c[i][j];
      } else {
        for (int64_t l = 0; l < width; l++) to[l] = add ? to[l] + c[i][j][l] : c[i][j][l];
      }
    }
}

/* C [M, J] = b + A B or C + A B, where element (i, k) of A is A[i row + k column] and B's rows are whole registers. Tiles
   are of MR or, one register wide, 2 MR rows: a sum has to wait for itself, so there have to be several at once. */
static void N(product)(int64_t M, int64_t J, int64_t K, const float *A, int64_t row, int64_t column, const float *B,
                       int64_t ldb, float *C, int64_t ldc, const float *b, int add) {
#define TILE(mr, nv, width)                                                                                          \
  N(tile)(mr, nv, K, A + i * row, row, column, B + j, ldb, C + i * ldc + j, ldc, b ? b + i : NULL, add, width)
#define TILES(mr, nv, width)                                                                                         \
  for (i = 0; i + mr <= M; i += mr) TILE(mr, nv, width);                                                             \
  for (; i < M; i++) TILE(1, nv, width)
  int64_t i, j = 0;
  for (; j + NV * VL <= J; j += NV * VL) {
    TILES(MR, NV, VL);
  }
  for (; j + VL < J; j += 2 * VL) {
    int64_t width = J - j < 2 * VL ? J - j - VL : VL;
    TILES(MR, 2, width);
  }
  for (; j < J; j += VL) {
    int64_t width = J - j;
    TILES(2 * MR, 1, width);
  }
}

/* Y [C, rows of ldy] = X' for X [R, rows of ldx], in squares of four as far as they go. */
static void N(transpose)(const float *X, int64_t R, int64_t ldx, int64_t C, float *Y, int64_t ldy) {
  for (int64_t r = 0; r < R; r += 4)
    for (int64_t c = 0; c < C; c += 4) {
      const float *x = X + r * ldx + c;
      float *y = Y + c * ldy + r;
      if (r + 4 > R || c + 4 > C) {
        for (int64_t i = 0; i < 4 && r + i < R; i++)
          for (int64_t j = 0; j < 4 && c + j < C; j++) y[j * ldy + i] = x[i * ldx + j];
        continue;
      }
      v4 a = *(const v4 *)x, b = *(const v4 *)(x + ldx), d = *(const v4 *)(x + 2 * ldx), e = *(const v4 *)(x + 3 * ldx);
      v4 ab = MIX(a, b, 0, 4, 1, 5), de = MIX(d, e, 0, 4, 1, 5), AB = MIX(a, b, 2, 6, 3, 7), DE = MIX(d, e, 2, 6, 3, 7);
      *(v4 *)y = MIX(ab, de, 0, 1, 4, 5), *(v4 *)(y + ldy) = MIX(ab, de, 2, 3, 6, 7);
      *(v4 *)(y + 2 * ldy) = MIX(AB, DE, 0, 1, 4, 5), *(v4 *)(y + 3 * ldy) = MIX(AB, DE, 2, 3, 6, 7);
    }
}

/* Columns [from, from + d) of rows of X, each `width` long, as Y [d, rows of R]. */
static void N(gather)(const float *X, int64_t width, int64_t from, int64_t d, const int64_t *rows, int64_t R, float *Y) {
  for (int64_t r = 0; r < R; r++)
    for (int64_t i = 0; i < d; i++) Y[i * R + r] = X[rows[r] * width + from + i];
}

/* The inputs are in x [R, features]. */
static void N(forward)(const Network *net, Work *w, int64_t R) {
  const float *W = net->theta + net->own;
  int64_t ldx = round_up(net->sizes[0], VL);
  N(transpose)(w->x, R, ldx, net->sizes[0], w->h[0], R);
  for (int64_t k = 0; k < net->layers; k++) {
    int64_t in = net->sizes[k], out = net->sizes[k + 1];
    float *h = w->h[k + 1];
    N(product)(out, R, in, W, in, 1, w->h[k], R, h, R, W + in * out, 0);
    W += (in + 1) * out;
    if (k == net->layers - 1) break;
    if (net->relu) {
      for (int64_t i = 0; i < out * R; i += VL) AT(h + i) = CHOOSE(READ(h + i) < 0.0f, ALL(0.0f), READ(h + i));
    } else {
      for (int64_t i = 0; i < out * R; i += VL) AT(h + i) = N(tanh)(READ(h + i));
    }
  }
}

/* f' at inputs h of a layer. */
INLINE vf N(slope)(const Network *net, vf h) {
  if (net->relu) return CHOOSE(h > 0.0f, ALL(1.0f), ALL(0.0f));
  return 1.0f - h * h;
}

/* d output, in g, along v: d_k = V_k h_{k-1} + c_k + W_k (f' d_{k-1}), layer by layer. */
static void N(push)(const Network *net, Work *w, const float *v, int64_t R) {
  int64_t at = net->own;
  for (int64_t k = 0; k < net->layers; k++) {
    int64_t in = net->sizes[k], out = net->sizes[k + 1];
    N(product)(out, R, in, v + at, in, 1, w->h[k], R, w->other, R, v + at + in * out, 0);
    if (k > 0) {
      for (int64_t i = 0; i < in * R; i += VL) AT(w->g + i) *= N(slope)(net, READ(w->h[k] + i));
      N(product)(out, R, in, net->theta + at, in, 1, w->g, R, w->other, R, NULL, 1);
    }
    at += (in + 1) * out;
    float *done = w->g;
    w->g = w->other, w->other = done;
  }
}

/* Adds d loss / d theta, given g = d loss / d output: by W_k it is g h_{k-1}', by b_k the sum of g over the rows. */
static void N(backward)(const Network *net, Work *w, int64_t R) {
  int64_t at = size_of(net);
  for (int64_t k = net->layers - 1; k >= 0; k--) {
    int64_t in = net->sizes[k], out = net->sizes[k + 1], ld = round_up(in, VL);
    at -= (in + 1) * out;
    if (k > 0) N(transpose)(w->h[k], in, R, R, w->t, ld);
    N(product)(out, in, R, w->g, R, 1, k > 0 ? w->t : w->x, ld, w->gradient + at, in, NULL, 1);
    for (int64_t o = 0; o < out; o++) {
      vf s = ALL(0.0f);
      for (int64_t r = 0; r < R; r += VL) s += READ(w->g + o * R + r);
      w->gradient[at + in * out + o] += N(sum)(s);
    }
    if (k == 0) break;
    N(product)(in, R, out, net->theta + at, 1, in, w->g, R, w->other, R, NULL, 0);
    for (int64_t i = 0; i < in * R; i += VL) AT(w->other + i) *= N(slope)(net, READ(w->h[k] + i));
    float *done = w->g;
    w->g = w->other, w->other = done;
  }
}

/* log p and p of logits y [d, rows], in their place and in p. */
static void N(softmax)(float *y, float *p, int64_t d, int64_t R) {
  for (int64_t r = 0; r < R; r += VL) {
    vf most = READ(y + r), sum = ALL(0.0f), log_sum;
    for (int64_t i = 1; i < d; i++) most = CHOOSE(READ(y + i * R + r) > most, READ(y + i * R + r), most);
    for (int64_t i = 0; i < d; i++) {
      AT(y + i * R + r) -= most;
      sum += AT(p + i * R + r) = N(exponential)(READ(y + i * R + r));
    }
    for (int l = 0; l < VL; l++) log_sum[l] = logf(sum[l]);
    for (int64_t i = 0; i < d; i++) AT(y + i * R + r) -= log_sum, AT(p + i * R + r) /= sum;
  }
}

/* What the ratio is multiplied with in the surrogate's derivative, d surrogate / d log new(a|s), and its value less
   the penalty `kl`. Adds the sums of value and clip fraction to `sums`. */
static void N(surrogate)(const Loss *loss, Work *w, const float *kl, int64_t R, double *sums) {
  const float low = (float)(1.0 - loss->epsilon), high = (float)(1.0 + loss->epsilon), slope = (float)loss->slope;
  const float half = (float)(2.0 * loss->epsilon), eps = (float)loss->epsilon, range = (float)loss->clip_range;
  vf total = ALL(0.0f), outside = ALL(0.0f);
  for (int64_t i = 0; i < R; i += VL) {
    vf r = N(exponential)(READ(w->log_new + i) - READ(w->log_old + i)), A = READ(w->A + i), share = READ(w->share + i);
    vf plain = r * A, value = plain, weight = plain, size = CHOOSE(A < 0.0f, -A, A), far = r - 1.0f;
    vf c = CHOOSE(r < low, ALL(low), CHOOSE(r > high, ALL(high), r));
    if (loss->surrogate == CLIP) {
      value = CHOOSE(c * A < plain, c * A, plain), weight = CHOOSE(c * A < plain, ALL(0.0f), plain);
    } else if (loss->surrogate == ROLLBACK) {
      vf back = (c - slope * (r - c)) * A;
      value = CHOOSE(back < plain, back, plain), weight = CHOOSE(back < plain, -slope * plain, plain);
    } else if (loss->surrogate == SPO) {
      value = plain - size / half * far * far, weight = (A - size / eps * far) * r;
    }
    AT(w->weight + i) = weight * share;
    total += share * (value - READ(kl + i));
    outside += share * CHOOSE((far > range) | (far < -range), ALL(1.0f), ALL(0.0f));
  }
  sums[0] -= N(sum)(total), sums[2] += N(sum)(outside);
}

/* d loss / d mean and d log_std, with z = (a - mean) / std: the score is (z / std, z^2 - 1). */
static void N(gaussian)(const Network *net, const Samples *s, const Loss *loss, const int64_t *rows, Work *w, int64_t R,
                        double *sums) {
  int64_t d = loss->d;
  const float *mean = w->h[net->layers], beta = (float)loss->beta, ent = (float)loss->ent_coef;
  float *kl = w->q;
  N(gather)(s->actions, d, 0, d, rows, R, w->action);
  memset(kl, 0, sizeof(float) * (size_t)R), memset(w->log_new, 0, sizeof(float) * (size_t)R);
  if (beta > 0.0f) N(gather)(s->old, d, 0, d, rows, R, w->old), N(gather)(s->old_log_std, d, 0, d, rows, R, w->old_s);
  for (int64_t i = 0; i < d * R; i += VL) {
    int64_t r = i % R;
    vf log_std = net->own ? ALL(net->theta[i / R]) : READ(mean + d * R + i) + (float)loss->log_std_init;
    vf std = N(exponential)(log_std), z = (READ(w->action + i) - READ(mean + i)) / std;
    AT(w->s + i) = log_std, AT(w->std + i) = std, AT(w->z + i) = z;
    AT(w->log_new + r) -= 0.5f * z * z + log_std + 0.918938533f; /* log(2 pi) / 2 */
    if (beta > 0.0f) {
      vf x = 2.0f * (READ(w->old_s + i) - log_std), far = (READ(mean + i) - READ(w->old + i)) / std;
      AT(kl + r) += beta * 0.5f * (N(expm1)(x) - x + far * far);
    }
  }
  N(surrogate)(loss, w, kl, R, sums);
  for (int64_t i = 0; i < d; i++) {
    vf by_own = ALL(0.0f);
    for (int64_t r = 0; r < R; r += VL) {
      int64_t at = i * R + r;
      vf std = READ(w->std + at), z = READ(w->z + at), weight = READ(w->weight + r), share = READ(w->share + r);
      vf by_mean = weight * (z / std), by_log_std = weight * (z * z - 1.0f) + share * ent;
      if (beta > 0.0f) {
        vf far = (READ(mean + at) - READ(w->old + at)) / std;
        by_mean -= share * beta * (far / std);
        by_log_std += share * beta * (N(expm1)(2.0f * (READ(w->old_s + at) - READ(w->s + at))) + far * far);
      }
      AT(w->g + at) = -by_mean, by_own -= by_log_std;
      if (!net->own) AT(w->g + d * R + at) = -by_log_std;
    }
    if (net->own) w->gradient[i] += N(sum)(by_own);
  }
}

/* d loss / d logits: the score is 1[i = a] - p_i, that of the entropy H -p_i (log p_i + H), of the KL p_i - old_i. */
static void N(categorical)(const Network *net, const Samples *s, const Loss *loss, const int64_t *rows, Work *w,
                           int64_t R, double *sums) {
  int64_t d = loss->d;
  float *log_p = w->h[net->layers], *p = w->z, *kl = w->std;
  const float beta = (float)loss->beta, ent = (float)loss->ent_coef;
  if (s->mask) {
    N(gather)(s->observations, s->width, s->mask, d, rows, R, w->action);
    for (int64_t i = 0; i < d * R; i += VL)
      AT(log_p + i) = CHOOSE(READ(w->action + i) > 0.5f, READ(log_p + i), ALL(-INFINITY));
  }
  N(softmax)(log_p, p, d, R);
  for (int64_t r = 0; r < R; r++) w->log_new[r] = log_p[s->choices[rows[r]] * R + r], w->q[r] = (float)s->choices[rows[r]];
  memset(kl, 0, sizeof(float) * (size_t)R);
  if (beta > 0.0f) {
    N(gather)(s->old, d, 0, d, rows, R, w->old);
    N(softmax)(w->old, w->old_s, d, R);
    for (int64_t i = 0; i < d * R; i += VL) {
      vf q = READ(w->old_s + i), term = q * (READ(w->old + i) - READ(log_p + i));
      AT(kl + i % R) += CHOOSE(q == 0.0f, ALL(0.0f), beta * term);
    }
  }
  N(surrogate)(loss, w, kl, R, sums);
  for (int64_t r = 0; r < R; r += VL) {
    vf H = ALL(0.0f), weight = READ(w->weight + r), share = READ(w->share + r), a = READ(w->q + r);
    for (int64_t i = 0; i < d; i++) {
      vf x = READ(p + i * R + r);
      H -= CHOOSE(x == 0.0f, ALL(0.0f), x * READ(log_p + i * R + r));
    }
    for (int64_t i = 0; i < d; i++) {
      vf x = READ(p + i * R + r), log_x = CHOOSE(x == 0.0f, ALL(0.0f), READ(log_p + i * R + r));
      vf up = weight * (CHOOSE(a == (float)i, ALL(1.0f), ALL(0.0f)) - x) - share * ent * (x * (log_x + H));
      if (beta > 0.0f) up -= share * beta * (x - READ(w->old_s + i * R + r));
      AT(w->g + i * R + r) = -up;
    }
  }
}

/* The gradient of one minibatch of m rows, block by block; adds policy loss, value loss and clip fraction to sums. */
static void N(gradient)(const Network *net, int is_actor, const Samples *s, const Loss *loss, const int64_t *rows,
                        int64_t m, Work *w, double *sums) {
  int64_t features = net->sizes[0], ldx = round_up(features, VL), all[BLOCK];
  memset(w->gradient, 0, sizeof(float) * (size_t)size_of(net));
  for (int64_t from = 0; from < m; from += BLOCK) {
    int64_t real = m - from < BLOCK ? m - from : BLOCK, R = round_up(real, VL);
    for (int64_t r = 0; r < R; r++) { /* rows that fill a register repeat the first one, with a share of 0 */
      all[r] = rows[from + (r < real ? r : 0)];
      w->share[r] = r < real ? 1.0f / (float)m : 0.0f;
      memcpy(w->x + r * ldx, s->observations + all[r] * s->width, sizeof(float) * (size_t)features);
    }
    N(forward)(net, w, R);
    if (is_actor) {
      N(gather)(s->advantage, 1, 0, 1, all, R, w->A), N(gather)(s->log_prob, 1, 0, 1, all, R, w->log_old);
      (loss->categorical ? N(categorical) : N(gaussian))(net, s, loss, all, w, R, sums);
    } else {
      vf total = ALL(0.0f);
      N(gather)(s->returns, 1, 0, 1, all, R, w->A);
      for (int64_t r = 0; r < R; r += VL) {
        vf share = READ(w->share + r), error = READ(w->h[net->layers] + r) - READ(w->A + r);
        total += share * error * error;
        AT(w->g + r) = (float)loss->vf_coef * (share * (2.0f * error));
      }
      sums[1] += N(sum)(total);
    }
    N(backward)(net, w, R);
  }
}

static double N(square_of)(const float *x, int64_t n) {
  vf s = ALL(0.0f);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) s += READ(x + i) * READ(x + i);
  double rest = 0.0;
  for (; i < n; i++) rest += (double)x[i] * x[i];
  return N(sum)(s) + rest;
}

/* Adam (Kingma and Ba 2015, algorithm 1) along `scale` times the gradient, as in klrl/policy/optimizer.py. */
static void N(adam)(const Loss *loss, Network *net, const float *restrict gradient, float scale) {
  float *restrict theta = net->theta, *restrict mean = net->mean, *restrict square = net->square;
  double correction = sqrt(1.0 - pow(loss->beta2, (double)++net->steps));
  const float rate = (float)(net->rate * correction / (1.0 - pow(loss->beta1, (double)net->steps)));
  const float eps = (float)(loss->eps * correction), c1 = (float)(1.0 - loss->beta1), c2 = (float)(1.0 - loss->beta2);
  for (int64_t i = 0, P = size_of(net); i < P; i++) {
    float g = gradient[i] * scale;
    mean[i] += (g - mean[i]) * c1;
    square[i] += (g * g - square[i]) * c2;
    theta[i] -= rate * mean[i] / (sqrtf(square[i]) + eps);
  }
}

/* Takes the steps of an epoch, on both networks or on the one that is given, and writes policy loss, value loss and
   clip fraction of each to `metrics`. Returns how many were taken: none if there is no memory, and fewer than all if a
   gradient is not finite, in front of whose step it stops. */
EXPORT int64_t N(klrl_epoch)(Network *actor, Network *critic, const Samples *s, const Loss *loss, double *metrics) {
  Work of_actor, of_critic;
  void *memory = prepare(actor, critic, &of_actor, &of_critic, loss->d);
  int64_t step = 0;
  for (int64_t from = 0; memory && from < s->n; from += s->batch, step++) {
    int64_t m = s->n - from < s->batch ? s->n - from : s->batch;
    double *sums = metrics + 3 * step, square = 0.0;
    sums[0] = sums[1] = sums[2] = 0.0;
    if (actor) {
      N(gradient)(actor, 1, s, loss, s->order + from, m, &of_actor, sums);
      square += N(square_of)(of_actor.gradient, size_of(actor));
    }
    if (critic) {
      N(gradient)(critic, 0, s, loss, s->order + from, m, &of_critic, sums);
      square += N(square_of)(of_critic.gradient, size_of(critic));
    }
    float norm = sqrtf((float)square);
    if (!isfinite(norm)) break;
    float scale = norm > loss->max_norm ? (float)(loss->max_norm / norm) : 1.0f;
    if (actor) N(adam)(loss, actor, of_actor.gradient, scale);
    if (critic) N(adam)(loss, critic, of_critic.gradient, scale);
  }
  free(memory);
  return step;
}

/* Writes the outputs [n, out] at inputs x [n, in]. `memory` begins with arrays of no more use; with `kept`, what
   derivatives are made of follows. */
EXPORT void N(klrl_outputs)(const Network *net, float *memory, int64_t n, const float *x, float *outputs, int64_t kept) {
  Arena arena = {memory, 0};
  Work w;
  lay_out(&arena, net, &w, 0);
  int64_t in = net->sizes[0], out = net->sizes[net->layers], ldx = round_up(in, VL);
  for (int64_t from = 0; from < n; from += BLOCK) {
    int64_t real = n - from < BLOCK ? n - from : BLOCK, R = round_up(real, VL);
    if (kept) keep(&arena, net, &w);
    for (int64_t r = 0; r < R; r++) /* rows that fill a register repeat the first one */
      memcpy(w.x + r * ldx, x + (from + (r < real ? r : 0)) * in, sizeof(float) * (size_t)in);
    N(forward)(net, &w, R);
    N(transpose)(w.h[net->layers], out, R, real, outputs + from * out, out);
  }
}

/* Writes J v to d [n, out] for v [P], at the inputs for which klrl_outputs has filled `memory`. */
EXPORT void N(klrl_push)(const Network *net, float *memory, int64_t n, const float *v, float *d) {
  Arena arena = {memory, 0};
  Work w;
  lay_out(&arena, net, &w, 0);
  int64_t out = net->sizes[net->layers];
  for (int64_t from = 0; from < n; from += BLOCK) {
    int64_t real = n - from < BLOCK ? n - from : BLOCK, R = round_up(real, VL);
    keep(&arena, net, &w);
    N(push)(net, &w, v, R);
    N(transpose)(w.g, out, R, real, d + from * out, out);
  }
}

/* Adds J' u to g [P] for u [n, out], likewise. */
EXPORT void N(klrl_pull)(const Network *net, float *memory, int64_t n, const float *u, float *g) {
  Arena arena = {memory, 0};
  Work w;
  lay_out(&arena, net, &w, 0);
  w.gradient = g;
  int64_t out = net->sizes[net->layers];
  for (int64_t from = 0; from < n; from += BLOCK) {
    int64_t real = n - from < BLOCK ? n - from : BLOCK, R = round_up(real, VL);
    keep(&arena, net, &w);
    memset(w.g, 0, sizeof(float) * (size_t)(out * R));
    N(transpose)(u + from * out, real, out, out, w.g, R);
    N(backward)(net, &w, R);
  }
}

/* The functions of this level that approximate one of the C library's: 0 e^x, 1 e^x - 1, 2 tanh; n is a multiple of 16. */
EXPORT void N(klrl_function)(int64_t which, const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i += VL)
    AT(y + i) = which == 0 ? N(exponential)(READ(x + i)) : which == 1 ? N(expm1)(READ(x + i)) : N(tanh)(READ(x + i));
}

#undef vf
#undef vi
#undef AT
#undef READ
#undef ALL
#undef CHOOSE
#undef TILE
#undef TILES
#endif
