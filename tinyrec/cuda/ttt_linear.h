// The formulas of ttt_linear.cu, whose head says what is what. y is lam G; a row of k or q has its 1 at the end.

#define ROWS 4          // of a product, in one thread
#define EPS real(1e-6)  // of the LayerNorm

struct Matrix { const real* first; int row, step; };  // entry (i, j) is first[i * row + j * step]

// --- products --------------------------------------------------------------------------------------------------------

__device__ Matrix transposed(Matrix x) { return {x.first, x.step, x.row}; }
__device__ int tiles(int rows) { return (rows + ROWS - 1) / ROWS; }

__device__ void clear(real* sum) {
    #pragma unroll
    for (int a = 0; a < ROWS; a++) sum[a] = 0;
}

// sum[a] += row i + a of x times column c of y, from..to - 1 of it; behind the last row that is read again.
__device__ void multiply(real* sum, int i, int rows, Matrix x, Matrix y, int c, int from, int to) {
    #pragma unroll 2
    for (int t = from; t < to; t++) {
        const real factor = y.first[t * y.row + c * y.step];
        #pragma unroll
        for (int a = 0; a < ROWS; a++) sum[a] += x.first[min(i + a, rows - 1) * x.row + t * x.step] * factor;
    }
}

__device__ void inner_rows(real* z, int m, Matrix k, Matrix w, int d, int ld) {  // k w, the row z of (3)
    for (int n = threadIdx.x; n < tiles(m) * d; n += blockDim.x) {
        const int i = n / d * ROWS, c = n % d;
        real sum[ROWS];
        clear(sum);
        multiply(sum, i, m, k, w, c, 0, d + 1);
        for (int a = 0; a < ROWS && i + a < m; a++) z[(i + a) * ld + c] = sum[a];
    }
}

// x_i y_j^T for j <= i, else 0: the scores of (6), and times -tau_i the dS of (12).
__device__ void scores_of(real* out, int m, int lm, Matrix x, Matrix y, int depth, const real* tau) {
    for (int n = threadIdx.x; n < tiles(m) * m; n += blockDim.x) {
        const int i = n / m * ROWS, j = n % m;
        real sum[ROWS];
        clear(sum);
        if (j < i + ROWS) multiply(sum, i, m, x, transposed(y), j, 0, depth);
        for (int a = 0; a < ROWS && i + a < m; a++) {
            out[(i + a) * lm + j] = j > i + a ? real(0) : tau ? -tau[i + a] * sum[a] : sum[a];
        }
    }
}

// (7): z = q w - tau move, with move = q s + (scores) (lam G).
__device__ void output_rows(real* z, real* move, int m, Matrix q, Matrix w, Matrix s, Matrix scores, Matrix y,
                            const real* tau, int d, int ld) {
    for (int n = threadIdx.x; n < tiles(m) * d; n += blockDim.x) {
        const int i = n / d * ROWS, c = n % d;
        real read[ROWS], moved[ROWS];
        clear(read), clear(moved);
        multiply(read, i, m, q, w, c, 0, d + 1);
        multiply(moved, i, m, scores, y, c, 0, min(i + ROWS, m));
        if (s.first) multiply(moved, i, m, q, s, c, 0, d + 1);
        for (int a = 0; a < ROWS && i + a < m; a++) {
            z[(i + a) * ld + c] = read[a] - tau[i + a] * moved[a];
            if (move) move[(i + a) * ld + c] = moved[a];
        }
    }
}

// (8): s + k^T (lam G), the sum of (4) after a piece, moves w, or is the new s if its mini-batch goes on.
__device__ void step(real* w, real* s_last, bool ends, int m, Matrix k, Matrix y, Matrix s, real tau, int d, int ld) {
    for (int n = threadIdx.x; n < tiles(d + 1) * d; n += blockDim.x) {
        const int r = n / d * ROWS, c = n % d;
        real sum[ROWS];
        clear(sum);
        multiply(sum, r, d + 1, transposed(k), y, c, 0, m);
        for (int a = 0; a < ROWS && r + a <= d; a++) {
            if (s.first) sum[a] += s.first[(r + a) * d + c];
            if (ends) w[(r + a) * ld + c] -= tau * sum[a];
            else s_last[(r + a) * d + c] = sum[a];
        }
    }
}

// --- LayerNorm, a warp to a row; lane n has the columns n, n + 32, ... -----------------------------------------------

__device__ real warp_sum(real x) {
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
    return x;
}

__device__ real normalise(real* z, int d) {  // z becomes h; gives rho
    real sum = 0, squares = 0;
    for (int c = threadIdx.x % 32; c < d; c += 32) sum += z[c];
    const real mean = warp_sum(sum) / d;
    for (int c = threadIdx.x % 32; c < d; c += 32) squares += (z[c] - mean) * (z[c] - mean);
    const real rho = rsqrt(warp_sum(squares) / d + EPS);
    for (int c = threadIdx.x % 32; c < d; c += 32) z[c] = (z[c] - mean) * rho;
    return rho;
}

__device__ real error(real h, real gain, real bias, real target) { return gain * (gain * h + bias - target); }  // e

// (3): z becomes lam G, and G goes to g.
__device__ void inner_gradient(real* z, const real* k, const real* v, const real* gain, const real* bias, real lam,
                               real* g, int d) {
    const real rho = normalise(z, d);
    real sum = 0, along = 0;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        const real e = error(z[c], gain[c], bias[c], v[c] - k[c]);
        sum += e, along += e * z[c];
    }
    const real mean = warp_sum(sum) / d, slope = warp_sum(along) / d;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        const real G = rho * (error(z[c], gain[c], bias[c], v[c] - k[c]) - mean - z[c] * slope);
        if (g) g[c] = G;
        z[c] = lam * G;
    }
}

// (5) for a row of (7).
__device__ void output(real* z, real* row, const real* q, const real* gain, const real* bias, int d) {
    normalise(row, d);
    for (int c = threadIdx.x % 32; c < d; c += 32) z[c] = q[c] + gain[c] * row[c] + bias[c];
}

// (9): Z becomes dZ; what gain and bias get goes to sums, one for each warp. Gives dtau of the row, -<dZ, move>.
__device__ real output_vjp(real* z, const real* move, const real* dz, const real* gain, real* sums, int d) {
    const real rho = normalise(z, d);
    real sum = 0, along = 0, moved = 0;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        const real dh = gain[c] * dz[c];
        sum += dh, along += dh * z[c];
        sums[c] += dz[c] * z[c], sums[d + c] += dz[c];
    }
    const real mean = warp_sum(sum) / d, slope = warp_sum(along) / d;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        z[c] = rho * (gain[c] * dz[c] - mean - z[c] * slope);
        moved += z[c] * move[c];
    }
    return -warp_sum(moved);
}

struct Second { real de, dh; };

__device__ Second second(real h, real n, real gain, real e, real mean, real slope, real along) {
    const real de = n - mean - h * along;                        // (14)
    return {de, gain * gain * de - n * slope - e * along};       // (15)
}

// The second derivative, with dG = lam pull: z becomes dZ^k, pull becomes -dtarget. Gives dlam, <G, pull>.
__device__ real inner_gradient_vjp(real* z, real* pull, const real* k, const real* v, const real* g, const real* gain,
                                   const real* bias, real lam, real* dv, real* sums, int d) {
    const real rho = normalise(z, d);
    real e_h = 0, n_1 = 0, n_h = 0, pull_g = 0, dh_1 = 0, dh_h = 0;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        const real n = rho * lam * pull[c];
        n_1 += n, n_h += n * z[c], e_h += error(z[c], gain[c], bias[c], v[c] - k[c]) * z[c], pull_g += pull[c] * g[c];
    }
    const real mean = warp_sum(n_1) / d, along = warp_sum(n_h) / d, slope = warp_sum(e_h) / d, dlam = warp_sum(pull_g);
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        const real e = error(z[c], gain[c], bias[c], v[c] - k[c]);
        const real dh = second(z[c], rho * lam * pull[c], gain[c], e, mean, slope, along).dh;
        dh_1 += dh, dh_h += dh * z[c];
    }
    const real mean_dh = warp_sum(dh_1) / d, stretch = (warp_sum(dh_h) + lam * dlam) / d;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
        const real h = z[c], off = gain[c] * h + bias[c] - (v[c] - k[c]);
        const Second x = second(h, rho * lam * pull[c], gain[c], gain[c] * off, mean, slope, along);
        z[c] = rho * (x.dh - mean_dh - h * stretch);                                               // (16)
        sums[c] += (gain[c] * h + off) * x.de, sums[d + c] += gain[c] * x.de;                      // (17)
        pull[c] = gain[c] * x.de, dv[c] = -gain[c] * x.de;
    }
    return dlam;
}

// --- the backward's products -----------------------------------------------------------------------------------------

// pull, which is dG of (11) over lam: from the lower rows of A rate (k dC_low), from the upper ones up^T dZ.
// up: tau scores. Gives the thread's share of <lam G, k dC_low>, for dtau_{K-1} of (12).
__device__ real pull_rows(real* pull, int m, Matrix k, Matrix dlow, real rate, Matrix y, Matrix up, Matrix dz, int d) {
    real dtau = 0;
    for (int n = threadIdx.x; n < tiles(m) * d; n += blockDim.x) {
        const int j = n / d * ROWS, c = n % d;
        real low[ROWS], high[ROWS];
        clear(low), clear(high);
        multiply(low, j, m, k, dlow, c, 0, d + 1);
        multiply(high, j, m, transposed(up), dz, c, j, m);
        for (int a = 0; a < ROWS && j + a < m; a++) {
            pull[(j + a) * y.row + c] = rate * low[a] - high[a];
            dtau += low[a] * y.first[(j + a) * y.row + c];
        }
    }
    return dtau;
}

// dq = dz + dZ w^T + dS k, (13) and (12), minus tau (dZ s^T), (18), where there was a sum s.
__device__ void query_vjp(real* dq, const real* dout, long long stride, int m, Matrix dz, Matrix w, Matrix dscores,
                          Matrix k, Matrix s, const real* tau, int d) {
    for (int n = threadIdx.x; n < tiles(m) * d; n += blockDim.x) {
        const int i = n / d * ROWS, r = n % d;
        real sum[ROWS], moved[ROWS];
        clear(sum), clear(moved);
        multiply(sum, i, m, dz, transposed(w), r, 0, d);
        multiply(sum, i, m, dscores, k, r, 0, min(i + ROWS, m));
        if (s.first) multiply(moved, i, m, dz, transposed(s), r, 0, d);
        for (int a = 0; a < ROWS && i + a < m; a++) {
            const long long here = (i + a) * stride + r;
            dq[here] = dout[here] + sum[a] - tau[i + a] * moved[a];
        }
    }
}

// dk = -dtarget + dZ^k w^T + dS^T q + rate lam G dC_low^T, (13) and (12).
__device__ void key_vjp(real* dk, long long stride, int m, Matrix dtarget, Matrix dz, Matrix w, Matrix dscores,
                        Matrix q, Matrix y, Matrix dlow, real rate, int d) {
    for (int n = threadIdx.x; n < tiles(m) * d; n += blockDim.x) {
        const int j = n / d * ROWS, r = n % d;
        real sum[ROWS], low[ROWS];
        clear(sum), clear(low);
        multiply(sum, j, m, dz, transposed(w), r, 0, d);
        multiply(sum, j, m, transposed(dscores), q, r, j, m);
        multiply(low, j, m, y, transposed(dlow), r, 0, d);
        for (int a = 0; a < ROWS && j + a < m; a++) {
            dk[(j + a) * stride + r] = dtarget.first[(j + a) * dtarget.row + r] + sum[a] + rate * low[a];
        }
    }
}

__device__ void weights_vjp(real* dw, int m, Matrix q, Matrix dz, Matrix k, Matrix dzk, int d, int ld) {  // (13)
    for (int n = threadIdx.x; n < tiles(d + 1) * d; n += blockDim.x) {
        const int r = n / d * ROWS, c = n % d;
        real sum[ROWS];
        clear(sum);
        multiply(sum, r, d + 1, transposed(q), dz, c, 0, m);
        multiply(sum, r, d + 1, transposed(k), dzk, c, 0, m);
        for (int a = 0; a < ROWS && r + a <= d; a++) dw[(r + a) * ld + c] += sum[a];
    }
}

// ds of the sum before a piece: rate dC_low, (10), minus q^T (tau dZ), (18). Gives a share of <dC_low, s>.
__device__ real sum_vjp(real* ds, int m, Matrix q, Matrix dz, const real* tau, Matrix low, real rate, Matrix s, int d) {
    real dtau = 0;
    for (int n = threadIdx.x; n < (d + 1) * d; n += blockDim.x) {
        const int r = n / d, c = n % d;
        const real dlow = low.first[r * low.row + c];
        real sum = rate * dlow;
        for (int i = 0; i < m; i++) sum -= q.first[i * q.row + r] * tau[i] * dz.first[i * dz.row + c];
        ds[n] = sum, dtau += dlow * s.first[n];
    }
    return dtau;
}
