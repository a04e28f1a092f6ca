// TTT-Linear, a linear model that learns while it reads. Twin of recurrences/ttt_linear.py; equation numbers are those
// of docs/recurrences/ttt_linear.md. As there, w and the sum s have the bias as a last row, q and k a last feature 1.
//
// One block per head of a sequence; w stays in shared memory while the block reads mini-batch after mini-batch, in
// phases with a barrier in between. There are two kinds. Products: a thread makes ROWS rows of one column, so that a
// number of the right matrix is read once for ROWS products; the numbers of the left one are the same for a whole warp.
// LayerNorms: a warp to a row. Rows in shared memory have an odd stride, so that the lanes of a warp meet in no bank,
// along a row or along a column. A piece is what is read of one mini-batch. Only the first can begin inside of one, and
// only the last can end there, so s is read from main memory by one piece and written by one.
//
// Kept for the backward: G, an array like q, and w before every `every` mini-batches. The w in between are made again
// by the steps since then, whose G are there: no scratch, and the forward's bits. In the mean that is (every - 1) / 2
// products more for a mini-batch, beside 8 of that size. The others are made again, too: k w, the scores, q w.
//
// Bytes per element in float32: forward 20 (q, k, v; z, G), backward 32 (q, k, v, G, dz; dq, dk, dv) + 4 (every - 1)
// (k, G), and for the saved w forward 4 (d + 1) / (K every), backward 4 (d + 1) / K; what a LayerNorm soon reads again
// (v, dz, gain, bias) comes from the cache. With d = 64, K = 16 and every = 1 there are 12 and 24 flops for a byte, and
// the chain of T / K steps is serial. What fills a GPU is many heads and sequences.
// Shared memory, in numbers; l is the odd one of d + 1 and d + 2, M the smaller of K and T, and W the warps of a block:
//   forward (d + 1) l + 4 M l + M (M | 1), with d = 64, K = 16 and float 34 KB;
//   backward 2 (d + 1) l + 6 M l + 2 M (M | 1) + W (2 d + 1) + K, 64 KB, which is what the smallest GPUs can give.
// Registers in float, at most: ttt_linear_forward 80, ttt_linear_backward 128. So a block has at most 256 threads, in
// whole warps. No atomics: a result is the same every time.

#include "ttt_linear.h"

struct Piece { int start, m, place; bool ends; };  // first token, how many, place in its mini-batch; does that end?

__device__ int pieces_of(int time, int size, int at) { return (at + time + size - 1) / size; }

__device__ Piece piece_of(int n, int time, int size, int at) {
    const int start = max(n * size - at, 0), stop = (n + 1) * size - at;
    return {start, min(stop, time) - start, n ? 0 : at, stop <= time};
}

// Rows of d numbers, `stride` apart, to shared memory, where a 1 comes behind each.
__device__ void load_views(real* out, const real* x, long long stride, int m, int d, int ld) {
    for (int n = threadIdx.x; n < m * d; n += blockDim.x) out[n / d * ld + n % d] = x[n / d * stride + n % d];
    for (int i = threadIdx.x; i < m; i += blockDim.x) out[i * ld + d] = 1;
}

__device__ void load_weights(real* w, const real* x, int d, int ld) {
    for (int n = threadIdx.x; n < (d + 1) * d; n += blockDim.x) w[n / d * ld + n % d] = x[n];
}

__device__ void store_weights(real* out, const real* w, int d, int ld) {
    for (int n = threadIdx.x; n < (d + 1) * d; n += blockDim.x) out[n] = w[n / d * ld + n % d];
}

// y: lam G again, of what the forward kept.
__device__ void load_steps(real* y, const real* g, const real* lam, int heads, long long stride, int m, int d, int ld) {
    for (int n = threadIdx.x; n < m * d; n += blockDim.x) {
        y[n / d * ld + n % d] = lam[(long long)(n / d) * heads] * g[n / d * stride + n % d];
    }
}

extern "C" __global__ void ttt_linear_forward(
    const real* __restrict__ q,     // (batch, time, heads, d)
    const real* __restrict__ k,     // (batch, time, heads, d)
    const real* __restrict__ v,     // (batch, time, heads, d)
    const real* __restrict__ lam,   // (batch, time, heads)
    const real* __restrict__ tau,   // (size)
    const real* __restrict__ gain,  // (heads, d)
    const real* __restrict__ bias,  // (heads, d)
    const real* __restrict__ w,     // (batch, heads, rows, d): d + 1 rows
    const real* __restrict__ s,     // (batch, heads, rows, d)
    real* __restrict__ z,           // (batch, time, heads, d)
    real* __restrict__ w_last,      // (batch, heads, rows, d)
    real* __restrict__ s_last,      // (batch, heads, rows, d)
    real* __restrict__ g,           // (batch, time, heads, d) or null
    real* __restrict__ saved,       // (groups, batch, heads, rows, d) or null: w before every `every` mini-batches
    int batch, int time, int heads, int d, int rows, int size, int at, int groups, int every) {
    extern __shared__ real memory[];
    const int ld = (d + 1) | 1, most = min(size, time), lm = most | 1, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    real* weights = memory;
    real* qs = weights + rows * ld;
    real* ks = qs + most * ld;
    real* y = ks + most * ld;
    real* out = y + most * ld;
    real* scores = out + most * ld;
    const Matrix W = {weights, ld, 1}, Q = {qs, ld, 1}, K = {ks, ld, 1}, Y = {y, ld, 1}, S = {scores, lm, 1};
    const int head = blockIdx.x % heads, last = pieces_of(time, size, at) - 1;
    const long long stride = (long long)heads * d, sequence = (long long)(blockIdx.x / heads) * time;
    const long long own = (long long)blockIdx.x * rows * d, all = (long long)gridDim.x * rows * d;
    const real* gains = gain + head * d;
    const real* biases = bias + head * d;
    const Matrix first_sum = {s + own, d, 1}, no_sum = {};
    real* none = {};
    load_weights(weights, w + own, d, ld);
    for (int n = 0; n <= last; n++) {
        const Piece p = piece_of(n, time, size, at);
        const long long token = (sequence + p.start) * heads + head, first = token * d;
        const real* rates = tau + p.place;
        const Matrix before = n ? no_sum : first_sum;
        load_views(qs, q + first, stride, p.m, d, ld);
        load_views(ks, k + first, stride, p.m, d, ld);
        __syncthreads();
        if (saved && n % every == 0) store_weights(saved + (n / every * all + own), weights, d, ld);
        inner_rows(y, p.m, K, W, d, ld);
        scores_of(scores, p.m, lm, Q, K, d + 1, none);
        __syncthreads();
        for (int i = warp; i < p.m; i += warps) {
            const long long row = first + i * stride;
            const real rate = lam[token + (long long)i * heads];
            inner_gradient(y + i * ld, ks + i * ld, v + row, gains, biases, rate, g ? g + row : g, d);
        }
        __syncthreads();
        output_rows(out, none, p.m, Q, W, before, S, Y, rates, d, ld);
        __syncthreads();
        for (int i = warp; i < p.m; i += warps) {
            output(z + first + i * stride, out + i * ld, qs + i * ld, gains, biases, d);
        }
        step(weights, s_last + own, p.ends, p.m, K, Y, before, tau[size - 1], d, ld);
        __syncthreads();
    }
    store_weights(w_last + own, weights, d, ld);
    if ((at + time) % size) return;
    for (int n = threadIdx.x; n < rows * d; n += blockDim.x) s_last[own + n] = 0;
}

// dgain, dbias and dtau have a row for each head of each sequence: their sums are the gradients.
extern "C" __global__ void ttt_linear_backward(
    const real* __restrict__ q,        // (batch, time, heads, d)
    const real* __restrict__ k,        // (batch, time, heads, d)
    const real* __restrict__ v,        // (batch, time, heads, d)
    const real* __restrict__ lam,      // (batch, time, heads)
    const real* __restrict__ tau,      // (size)
    const real* __restrict__ gain,     // (heads, d)
    const real* __restrict__ bias,     // (heads, d)
    const real* __restrict__ s,        // (batch, heads, rows, d)
    const real* __restrict__ g,        // (batch, time, heads, d)
    const real* __restrict__ saved,    // (groups, batch, heads, rows, d)
    const real* __restrict__ dz,       // (batch, time, heads, d)
    const real* __restrict__ dw_last,  // (batch, heads, rows, d)
    const real* __restrict__ ds_last,  // (batch, heads, rows, d)
    real* __restrict__ dq,             // (batch, time, heads, d)
    real* __restrict__ dk,             // (batch, time, heads, d)
    real* __restrict__ dv,             // (batch, time, heads, d)
    real* __restrict__ dlam,           // (batch, time, heads)
    real* __restrict__ dtau,           // (batch, heads, size)
    real* __restrict__ dgain,          // (batch, heads, d)
    real* __restrict__ dbias,          // (batch, heads, d)
    real* __restrict__ dw,             // (batch, heads, rows, d)
    real* __restrict__ ds,             // (batch, heads, rows, d)
    int batch, int time, int heads, int d, int rows, int size, int at, int groups, int every) {
    extern __shared__ real memory[];
    const int ld = (d + 1) | 1, most = min(size, time), lm = most | 1, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int per_warp = 2 * d + 1;  // of what is summed over the rows of a warp: dgain, dbias; and dtau_{K-1} of (10)
    real* weights = memory;
    real* dweights = weights + rows * ld;
    real* qs = dweights + rows * ld;
    real* ks = qs + most * ld;
    real* y = ks + most * ld;
    real* inner = y + most * ld;  // the row of (3), its h, dZ^k
    real* out = inner + most * ld;  // the row of (7), its h, dZ
    real* pull = out + most * ld;  // move of (7), dG over lam, -dtarget
    real* scores = pull + most * ld;
    real* dscores = scores + most * lm;
    real* sums = dscores + most * lm;
    real* dtaus = sums + warps * per_warp;
    const Matrix W = {weights, ld, 1}, Q = {qs, ld, 1}, K = {ks, ld, 1}, Y = {y, ld, 1}, S = {scores, lm, 1};
    const Matrix I = {inner, ld, 1}, O = {out, ld, 1}, P = {pull, ld, 1}, D = {dscores, lm, 1};
    const int head = blockIdx.x % heads, last = pieces_of(time, size, at) - 1;
    const long long stride = (long long)heads * d, sequence = (long long)(blockIdx.x / heads) * time;
    const long long own = (long long)blockIdx.x * rows * d, all = (long long)gridDim.x * rows * d;
    const real* gains = gain + head * d;
    const real* biases = bias + head * d;
    const Matrix first_sum = {s + own, d, 1}, no_sum = {};
    const real* none = {};
    real dstep = 0;
    load_weights(dweights, dw_last + own, d, ld);
    for (int n = threadIdx.x; n < warps * per_warp + size; n += blockDim.x) sums[n] = 0;  // and dtaus
    for (int n = last; n >= 0; n--) {
        const Piece p = piece_of(n, time, size, at);
        const long long token = (sequence + p.start) * heads + head, first = token * d;
        const real* rates = tau + p.place;
        const real rate = p.ends ? -tau[size - 1] : real(1);
        const Matrix before = n ? no_sum : first_sum;
        Matrix dlow = {dweights, ld, 1};
        if (!p.ends) dlow = {ds_last + own, d, 1};
        load_weights(weights, saved + (n / every * all + own), d, ld);
        for (int b = n / every * every; b < n; b++) {  // the steps since then
            const Piece past = piece_of(b, time, size, at);
            const long long there = (sequence + past.start) * heads + head;
            load_views(ks, k + there * d, stride, past.m, d, ld);
            load_steps(y, g + there * d, lam + there, heads, stride, past.m, d, ld);
            __syncthreads();
            step(weights, ds + own, true, past.m, K, Y, b ? no_sum : first_sum, tau[size - 1], d, ld);
            __syncthreads();
        }
        load_views(qs, q + first, stride, p.m, d, ld);
        load_views(ks, k + first, stride, p.m, d, ld);
        load_steps(y, g + first, lam + token, heads, stride, p.m, d, ld);
        __syncthreads();
        inner_rows(inner, p.m, K, W, d, ld);
        scores_of(scores, p.m, lm, Q, K, d + 1, none);
        __syncthreads();
        output_rows(out, pull, p.m, Q, W, before, S, Y, rates, d, ld);
        __syncthreads();
        for (int i = warp; i < p.m; i += warps) {
            const real* dout = dz + (first + i * stride);
            const real moved = output_vjp(out + i * ld, pull + i * ld, dout, gains, sums + warp * per_warp, d);
            if (threadIdx.x % 32 == 0) dtaus[p.place + i] += moved;
            for (int j = threadIdx.x % 32; j < p.m; j += 32) scores[i * lm + j] *= rates[i];
        }
        __syncthreads();
        const real low = pull_rows(pull, p.m, K, dlow, rate, Y, S, O, d);
        scores_of(dscores, p.m, lm, O, Y, d, rates);
        __syncthreads();
        for (int i = warp; i < p.m; i += warps) {
            const long long row = first + i * stride, t = token + (long long)i * heads;
            const real slope = inner_gradient_vjp(inner + i * ld, pull + i * ld, ks + i * ld, v + row, g + row, gains,
                                                  biases, lam[t], dv + row, sums + warp * per_warp, d);
            if (threadIdx.x % 32 == 0) dlam[t] = slope;
        }
        __syncthreads();
        query_vjp(dq + first, dz + first, stride, p.m, O, W, D, K, before, rates, d);
        key_vjp(dk + first, stride, p.m, P, I, W, D, Q, Y, dlow, rate, d);
        const real of_sum = n ? real(0) : sum_vjp(ds + own, p.m, Q, O, rates, dlow, rate, before, d);
        if (p.ends) dstep -= low + of_sum;
        __syncthreads();
        weights_vjp(dweights, p.m, Q, O, K, I, d, ld);
        __syncthreads();
    }
    store_weights(dw + own, dweights, d, ld);
    dstep = warp_sum(dstep);
    if (threadIdx.x % 32 == 0) sums[warp * per_warp + 2 * d] = dstep;
    __syncthreads();
    const long long block = blockIdx.x;
    for (int c = threadIdx.x; c < d; c += blockDim.x) {
        real of_gain = 0, of_bias = 0;
        for (int n = 0; n < warps; n++) of_gain += sums[n * per_warp + c], of_bias += sums[n * per_warp + d + c];
        dgain[block * d + c] = of_gain, dbias[block * d + c] = of_bias;
    }
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        real sum = dtaus[i];
        for (int n = 0; n < warps && i == size - 1; n++) sum += sums[n * per_warp + 2 * d];
        dtau[block * size + i] = sum;
    }
}
