// RG-LRU, the real-gated linear recurrent unit of Hawk and Griffin. Twin of recurrences/rglru.py; equation numbers are
// those of docs/recurrences/rglru.md.
//
// One thread per channel of a sequence walks through time with the state in a register and makes the gates on the way,
// forward and again backward: a few exponentials cost less than writing r, i, a, m and reading them back. Threads of a
// warp are neighbours in the last axis, so every step moves whole sectors; `starts` is one byte for all of them.
// A step waits for the one before it, but its inputs need not: those of AHEAD steps are on their way at once, into
// registers (loops over them are unrolled, or they would lie in memory; behind the last step the last is read again).
//
// So it is up to sm_90; for sm_100 and sm_120 NVIDIA's compiler moves most of these loads back to where they are used,
// also where the gates of AHEAD steps are made first, as in qrnn.cu, and where no branch stands around a step.
//
// Bytes per element in float32: forward 16 (u, zr, zi; h), backward 32 (u, zr, zi, h, dh; du, dzr, dzi).
// Registers in float, at most: rglru_forward 72, rglru_backward 116.

#define AHEAD 8
#define C 8             // of (3)
#define MAX_SLOPE 1000  // of the square root (11)

__device__ real select(bool where, real a, real b) { return where ? a : b; }

__device__ real sigmoid(real x) {  // without a branch; e is at most 1
    const real e = exp(select(x < 0, x, -x)), s = 1 / (1 + e);
    return select(x < 0, e * s, s);
}

__device__ real softplus(real x) { return select(x > 0, x, real(0)) + log1p(exp(select(x < 0, x, -x))); }

__device__ real root(real log_a) { return sqrt(-expm1(2 * log_a)); }  // m of (4) (5)

extern "C" __global__ void rglru_forward(
    const real* __restrict__ u,       // (batch, time, width)
    const real* __restrict__ zr,      // (batch, time, width)
    const real* __restrict__ zi,      // (batch, time, width)
    const real* __restrict__ lam,     // (width)
    const real* __restrict__ h_init,  // (batch, width)
    const bool* __restrict__ starts,  // (batch, time) or null: where a document begins
    real* __restrict__ h,             // (batch, time, width)
    int batch, int time, int width) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= (long long)batch * width) return;
    const long long first = c / width * time, channel = c % width;  // row of t = 0, place in a row
    const real slope = -C * softplus(lam[channel]);
    real state = h_init[c];
    for (int tile = 0; tile < time; tile += AHEAD) {
        real ut[AHEAD], zrt[AHEAD], zit[AHEAD];
        bool start[AHEAD];
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const long long row = first + min(tile + j, time - 1), i = row * width + channel;
            ut[j] = u[i], zrt[j] = zr[i], zit[j] = zi[i];
            start[j] = starts ? starts[row] : false;
        }
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (tile + j >= time) continue;
            const real log_a = slope * sigmoid(zrt[j]);                                          // (2) (3)
            const real a = start[j] ? real(0) : exp(log_a), m = start[j] ? real(1) : root(log_a);  // (4) (5) (6)
            state = a * state + m * sigmoid(zit[j]) * ut[j];                                     // (7)
            h[(first + tile + j) * width + channel] = state;
        }
    }
}

// dlam has one row per sequence: its sum over the batch is the gradient.
extern "C" __global__ void rglru_backward(
    const real* __restrict__ u,        // (batch, time, width)
    const real* __restrict__ zr,       // (batch, time, width)
    const real* __restrict__ zi,       // (batch, time, width)
    const real* __restrict__ lam,      // (width)
    const real* __restrict__ h,        // (batch, time, width)
    const real* __restrict__ h_init,   // (batch, width)
    const bool* __restrict__ starts,   // (batch, time) or null
    const real* __restrict__ dh,       // (batch, time, width)
    const real* __restrict__ dh_last,  // (batch, width)
    real* __restrict__ du,             // (batch, time, width)
    real* __restrict__ dzr,            // (batch, time, width)
    real* __restrict__ dzi,            // (batch, time, width)
    real* __restrict__ dlam,           // (batch, width)
    real* __restrict__ dh_init,        // (batch, width)
    int batch, int time, int width) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= (long long)batch * width) return;
    const long long first = c / width * time, channel = c % width;
    const real slope = -C * softplus(lam[channel]), init = h_init[c];
    real carry = dh_last[c], sum = 0;  // a_{t+1} delta_{t+1}; of r dlog_a
    for (int tile = (time - 1) / AHEAD * AHEAD; tile >= 0; tile -= AHEAD) {
        real ut[AHEAD], zrt[AHEAD], zit[AHEAD], dht[AHEAD], before[AHEAD];
        bool start[AHEAD];
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int t = min(tile + j, time - 1);
            const long long i = (first + t) * width + channel, i_before = (first + max(t - 1, 0)) * width + channel;
            ut[j] = u[i], zrt[j] = zr[i], zit[j] = zi[i], dht[j] = dh[i], before[j] = h[i_before];
            start[j] = starts ? starts[first + t] : false;
        }
        #pragma unroll
        for (int j = AHEAD - 1; j >= 0; j--) {
            if (tile + j >= time) continue;
            const long long i = (first + tile + j) * width + channel;
            const real r = sigmoid(zrt[j]), gate = sigmoid(zit[j]), log_a = slope * r;             // (2) (3)
            const real a = start[j] ? real(0) : exp(log_a), m = start[j] ? real(1) : root(log_a);  // (4) (5) (6)
            const real delta = dht[j] + carry;                                                     // (8)
            const real dgx = delta * m, dm = delta * gate * ut[j];                                 // (9)
            du[i] = dgx * gate;
            dzi[i] = dgx * ut[j] * gate * (1 - gate);                                              // (14)
            const real da = delta * (tile + j > 0 ? before[j] : init);                             // (10)
            const real dq = dm * min(1 / (2 * m), real(MAX_SLOPE));                                // (11)
            const real dlog_a = a * (da - 2 * a * dq);                                             // (12)
            dzr[i] = slope * dlog_a * r * (1 - r);                                                 // (13)
            sum += r * dlog_a;
            carry = a * delta;
        }
    }
    dlam[c] = -C * sigmoid(lam[channel]) * sum;  // (15)
    dh_init[c] = carry;                          // (16)
}
