// WKV, the fading average of RWKV-4. Twin of recurrences/wkv.py; equation numbers are those of docs/recurrences/wkv.md.
//
// One thread per channel of a sequence walks through time with p, q and the gauge o in registers: any length, no
// shared memory. The readout always takes form (8), which is safe for all parameters: beside the memory traffic one
// more exponential costs little here, and form (9) would have to ask the host for a number.
//
// A step waits for the one before it, but its inputs need not: those of a tile of STEPS steps are on their way at once,
// into registers (loops over a tile are unrolled, or they would lie in memory; behind the last step the last one is
// read again). The forward saves the state before every tile. The backward takes the tiles from last to first, each
// once forward, to have the states of its steps in registers, and then back.
//
// Bytes per element in float32: forward 12 (k, v; y) + 0.75 saved, backward 20 (k, v, dy; dk, dv) + 0.75.

#define STEPS (64 / (int)sizeof(real))  // of a tile: 16 in float; 8 in double, whose states need twice the registers

__device__ real select(bool where, real a, real b) { return where ? a : b; }

// keep and new of the state (5) when the gauge goes from `before` to `after`; past and now of the readout (8).
struct Weights { real keep, fresh, past, now; };  // `new` is a word of C++

__device__ Weights weigh(real before, real after, real k, real lam, real u) {
    const real kept = before - after, arrived = k - after;  // only differences of gauges enter
    const real current = arrived + u, less = exp(-fabs(kept - current));  // beside the larger one, which is e^0
    return {exp(kept + lam), exp(arrived), select(kept > current, 1, less), select(kept > current, less, 1)};
}

__device__ real next_gauge(real o, real k, real lam) { return select(o + lam > k, o + lam, k); }  // (4)

extern "C" __global__ void wkv_forward(
    const real* __restrict__ k,           // (batch, time, width)
    const real* __restrict__ v,           // (batch, time, width)
    const real* __restrict__ time_decay,  // (width)
    const real* __restrict__ time_first,  // (width)
    const real* __restrict__ p_init,      // (batch, width)
    const real* __restrict__ q_init,      // (batch, width)
    const real* __restrict__ o_init,      // (batch, width)
    real* __restrict__ y,                 // (batch, time, width)
    real* __restrict__ p_last,            // (batch, width)
    real* __restrict__ q_last,            // (batch, width)
    real* __restrict__ o_last,            // (batch, width)
    real* __restrict__ saved,             // (tiles, 3, batch, width) or null: p, q, o before each tile
    int batch, int time, int width, int tiles) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x, rows = (long long)batch * width;
    if (c >= rows) return;
    const real lam = -exp(time_decay[c % width]), u = time_first[c % width];
    const long long first = c / width * time * width + c % width;  // of k[b, 0, channel]
    real p = p_init[c], q = q_init[c], o = o_init[c];
    for (int tile = 0; tile < tiles; tile++) {
        const int start = tile * STEPS;
        if (saved) {
            const long long s = 3ll * tile * rows + c;
            saved[s] = p, saved[s + rows] = q, saved[s + 2 * rows] = o;
        }
        real kt[STEPS], vt[STEPS];
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const long long i = first + (long long)min(start + j, time - 1) * width;
            kt[j] = k[i], vt[j] = v[i];
        }
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            if (start + j >= time) continue;
            const real after = next_gauge(o, kt[j], lam);
            const Weights w = weigh(o, after, kt[j], lam, u);
            y[first + (long long)(start + j) * width] = (w.past * p + w.now * vt[j]) / (w.past * q + w.now);  // (7)
            p = w.keep * p + w.fresh * vt[j], q = w.keep * q + w.fresh;                                       // (6)
            o = after;
        }
    }
    p_last[c] = p, q_last[c] = q, o_last[c] = o;
}

// dtime_decay and dtime_first have one row per sequence: their sum over the batch is the gradient.
extern "C" __global__ void wkv_backward(
    const real* __restrict__ k,           // (batch, time, width)
    const real* __restrict__ v,           // (batch, time, width)
    const real* __restrict__ time_decay,  // (width)
    const real* __restrict__ time_first,  // (width)
    const real* __restrict__ saved,       // (tiles, 3, batch, width)
    const real* __restrict__ dy,          // (batch, time, width)
    const real* __restrict__ dp_last,     // (batch, width)
    const real* __restrict__ dq_last,     // (batch, width)
    real* __restrict__ dk,                // (batch, time, width)
    real* __restrict__ dv,                // (batch, time, width)
    real* __restrict__ dtime_decay,       // (batch, width)
    real* __restrict__ dtime_first,       // (batch, width)
    real* __restrict__ dp_init,           // (batch, width)
    real* __restrict__ dq_init,           // (batch, width)
    int batch, int time, int width, int tiles) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x, rows = (long long)batch * width;
    if (c >= rows) return;
    const real lam = -exp(time_decay[c % width]), u = time_first[c % width];
    const long long first = c / width * time * width + c % width;
    real dp = dp_last[c], dq = dq_last[c], dlam = 0, du = 0;
    for (int tile = tiles - 1; tile >= 0; tile--) {
        const int start = tile * STEPS;
        const long long s = 3ll * tile * rows + c;
        real kt[STEPS], vt[STEPS], dyt[STEPS];
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const long long i = first + (long long)min(start + j, time - 1) * width;
            kt[j] = k[i], vt[j] = v[i], dyt[j] = dy[i];
        }
        real p[STEPS + 1], q[STEPS + 1], o[STEPS + 1];  // before each step and after the last
        p[0] = saved[s], q[0] = saved[s + rows], o[0] = saved[s + 2 * rows];
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            o[j + 1] = next_gauge(o[j], kt[j], lam);
            const real keep = exp(o[j] - o[j + 1] + lam), fresh = exp(kt[j] - o[j + 1]);      // (5)
            p[j + 1] = keep * p[j] + fresh * vt[j], q[j + 1] = keep * q[j] + fresh;           // (6)
        }
        #pragma unroll
        for (int j = STEPS - 1; j >= 0; j--) {
            if (start + j >= time) continue;
            const long long i = first + (long long)(start + j) * width;
            const Weights w = weigh(o[j], o[j + 1], kt[j], lam, u);
            const real den = w.past * q[j] + w.now, yt = (w.past * p[j] + w.now * vt[j]) / den;  // (7)
            const real dnum = dyt[j] / den, dden = -dnum * yt;                                   // (10)
            dlam += w.keep * (dp * p[j] + dq * q[j]);                                            // (12)
            dv[i] = w.now * dnum + w.fresh * dp;                                                 // (13)
            const real dbonus = w.now * dnum * (vt[j] - yt);                                     // (14)
            du += dbonus;                                                                        // (15)
            dk[i] = dbonus + w.fresh * (dp * vt[j] + dq);                                        // (16)
            dp = w.keep * dp + w.past * dnum, dq = w.keep * dq + w.past * dden;                  // (11)
        }
    }
    dtime_decay[c] = lam * dlam;  // (17)
    dtime_first[c] = du;
    dp_init[c] = dp, dq_init[c] = dq;
}
