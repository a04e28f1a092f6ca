// WKV, the fading average of RWKV-4. Twin of recurrences/wkv.py; equation numbers are those of docs/recurrences/wkv.md.
//
// One thread per channel of a sequence walks through time with p, q and the gauge o in registers: any length, no
// shared memory. The readout takes form (9) where it is safe, and else (8), with one exponential more. Every thread
// decides for its own channel, and so no number of the parameters is asked for by the host.
//
// A step waits for the one before it, but its inputs need not: those of a tile of STEPS steps are on their way at once,
// into registers (loops over a tile are unrolled, or they would lie in memory; behind the last step the last one is
// read again). The forward saves the state before every tile, and its steps have no branch around them, so that no
// compiler moves a load into one: NVIDIA's did for sm_100 and sm_120, and each step waited for its own. The backward
// takes the tiles from last to first, each once forward, to have the states of its steps in registers, and then back.
//
// Bytes per element in float32: forward 12 (k, v; y) + 0.75 saved, backward 20 (k, v, dy; dk, dv) + 0.75.
// Registers in float, at most: wkv_forward 64, wkv_backward 168. Of a tile it has 131 numbers in them.

#define STEPS (64 / (int)sizeof(real))          // of a tile: 16 in float; 8 in double, which takes two registers
#define LARGEST (sizeof(real) == 4 ? 60 : 600)  // |u + lam| up to which (9) is safe: far from its overflow

__device__ real select(bool where, real a, real b) { return where ? a : b; }
__device__ bool every(bool here) { return here; }  // of one thread; for packs of threads it is all of them

struct Channel { real lam, u, ratio; bool single; };  // past / keep of (9); is it safe?

__device__ Channel channel_of(real time_decay, real time_first) {
    const real lam = -exp(time_decay);
    return {lam, time_first, exp(-time_first - lam), every(fabs(time_first + lam) < LARGEST)};
}

struct Readout { real past, now; };  // the weights of (7)

// keep and new of (5) are e^(kept + lam) and e^arrived: the gauge before and k, seen from the gauge after the step.
__device__ Readout readout(real keep, real fresh, real kept, real arrived, Channel of) {  // `new` is a word of C++
    if (of.single) return {keep * of.ratio, fresh};  // (9)
    const real current = arrived + of.u, less = exp(-fabs(kept - current));  // beside the larger one, which is e^0
    return {select(kept > current, 1, less), select(kept > current, less, 1)};  // (8)
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
    const Channel channel = channel_of(time_decay[c % width], time_first[c % width]);
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
            const bool inside = start + j < time;
            const real after = next_gauge(o, kt[j], channel.lam), kept = o - after, arrived = kt[j] - after;
            const real keep = exp(kept + channel.lam), fresh = exp(arrived);      // (5)
            const Readout w = readout(keep, fresh, kept, arrived, channel);
            const real yt = (w.past * p + w.now * vt[j]) / (w.past * q + w.now);  // (7)
            if (inside) y[first + (long long)(start + j) * width] = yt;
            p = select(inside, keep * p + fresh * vt[j], p);                      // (6)
            q = select(inside, keep * q + fresh, q);
            o = select(inside, after, o);
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
    const Channel channel = channel_of(time_decay[c % width], time_first[c % width]);
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
        real p[STEPS + 1], q[STEPS + 1], o[STEPS + 1], keep[STEPS], fresh[STEPS];  // p, q, o also after the last step
        p[0] = saved[s], q[0] = saved[s + rows], o[0] = saved[s + 2 * rows];
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            o[j + 1] = next_gauge(o[j], kt[j], channel.lam);
            keep[j] = exp(o[j] - o[j + 1] + channel.lam), fresh[j] = exp(kt[j] - o[j + 1]);       // (5)
            p[j + 1] = keep[j] * p[j] + fresh[j] * vt[j], q[j + 1] = keep[j] * q[j] + fresh[j];   // (6)
        }
        #pragma unroll
        for (int j = STEPS - 1; j >= 0; j--) {
            if (start + j >= time) continue;
            const long long i = first + (long long)(start + j) * width;
            const Readout w = readout(keep[j], fresh[j], o[j] - o[j + 1], kt[j] - o[j + 1], channel);
            const real den = w.past * q[j] + w.now, yt = (w.past * p[j] + w.now * vt[j]) / den;   // (7)
            const real dnum = dyt[j] / den, dden = -dnum * yt;                                    // (10)
            dlam += keep[j] * (dp * p[j] + dq * q[j]);                                            // (12)
            dv[i] = w.now * dnum + fresh[j] * dp;                                                 // (13)
            const real dbonus = w.now * dnum * (vt[j] - yt);                                      // (14)
            du += dbonus;                                                                         // (15)
            dk[i] = dbonus + fresh[j] * (dp * vt[j] + dq);                                        // (16)
            dp = keep[j] * dp + w.past * dnum, dq = keep[j] * dq + w.past * dden;                 // (11)
        }
    }
    dtime_decay[c] = channel.lam * dlam;  // (17)
    dtime_first[c] = du;
    dp_init[c] = dp, dq_init[c] = dq;
}
