// QRNN pooling. Twin of recurrences/qrnn.py; equation numbers are those of docs/recurrences/qrnn.md.
//
// The kernels of scan.cu could do the recurrence, but want time first and the gates made before: array code around them
// moves each number three times as often. So this has the shape of rglru.cu: one thread per channel of a sequence walks
// through time with the cell in a register, and makes the gates on the way, forward and again backward.
// A step waits for the one before it, but its inputs and gates need not: those of AHEAD steps come first, into
// registers (loops over them are unrolled, or they would lie in memory; behind the last step the last is read again).
//
// Bytes per element in float32, without and with i: forward 12, 16 (z, f, (i); c), backward 24, 32 (z, f, (i), c, dc;
// dz, df, (di)).
// Registers in float, at most: qrnn_forward 64, qrnn_backward 72. Of AHEAD steps they have 24 and 40 numbers in them.

#define AHEAD 8

__device__ real select(bool where, real a, real b) { return where ? a : b; }

__device__ real sigmoid(real x) {  // without a branch; e is at most 1
    const real e = exp(select(x < 0, x, -x)), s = 1 / (1 + e);
    return select(x < 0, e * s, s);
}

extern "C" __global__ void qrnn_forward(
    const real* __restrict__ z,       // (batch, time, width)
    const real* __restrict__ f,       // (batch, time, width)
    const real* __restrict__ i,       // (batch, time, width) or null: f- and fo-pooling
    const real* __restrict__ c_init,  // (batch, width)
    real* __restrict__ c,             // (batch, time, width)
    int batch, int time, int width) {
    const long long channel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= (long long)batch * width) return;
    const long long first = channel / width * time * width + channel % width;  // its place at t = 0
    real state = c_init[channel];
    for (int tile = 0; tile < time; tile += AHEAD) {
        real zs[AHEAD], fs[AHEAD], is[AHEAD];
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const long long at = first + (long long)min(tile + j, time - 1) * width;
            zs[j] = z[at], fs[j] = f[at], is[j] = i ? i[at] : real(0);
        }
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            zs[j] = tanh(zs[j]), fs[j] = sigmoid(fs[j]);  // (1)
            is[j] = i ? sigmoid(is[j]) : 1 - fs[j];       // (2)
        }
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (tile + j >= time) continue;
            state = fs[j] * state + is[j] * zs[j];        // (3)
            c[first + (long long)(tile + j) * width] = state;
        }
    }
}

extern "C" __global__ void qrnn_backward(
    const real* __restrict__ z,        // (batch, time, width)
    const real* __restrict__ f,        // (batch, time, width)
    const real* __restrict__ i,        // (batch, time, width) or null, and di with it
    const real* __restrict__ c,        // (batch, time, width)
    const real* __restrict__ c_init,   // (batch, width)
    const real* __restrict__ dc,       // (batch, time, width)
    const real* __restrict__ dc_last,  // (batch, width)
    real* __restrict__ dz,             // (batch, time, width)
    real* __restrict__ df,             // (batch, time, width)
    real* __restrict__ di,             // (batch, time, width) or null
    real* __restrict__ dc_init,        // (batch, width)
    int batch, int time, int width) {
    const long long channel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= (long long)batch * width) return;
    const long long first = channel / width * time * width + channel % width;
    const real init = c_init[channel];
    real carry = dc_last[channel];  // ft_{t+1} delta_{t+1}
    for (int tile = (time - 1) / AHEAD * AHEAD; tile >= 0; tile -= AHEAD) {
        real zs[AHEAD], fs[AHEAD], is[AHEAD], dcs[AHEAD], before[AHEAD];
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int t = min(tile + j, time - 1);
            const long long at = first + (long long)t * width;
            zs[j] = z[at], fs[j] = f[at], is[j] = i ? i[at] : real(0);
            dcs[j] = dc[at], before[j] = c[first + (long long)max(t - 1, 0) * width];
        }
        #pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            zs[j] = tanh(zs[j]), fs[j] = sigmoid(fs[j]);  // (1)
            is[j] = i ? sigmoid(is[j]) : 1 - fs[j];       // (2)
        }
        #pragma unroll
        for (int j = AHEAD - 1; j >= 0; j--) {
            if (tile + j >= time) continue;
            const long long at = first + (long long)(tile + j) * width;
            const real delta = dcs[j] + carry;                         // (4)
            const real dzt = delta * is[j], dit = delta * zs[j];       // (5)
            const real past = tile + j > 0 ? before[j] : init;
            const real dft = delta * past - (i ? real(0) : dit);       // (6)
            dz[at] = dzt * (1 - zs[j] * zs[j]);                        // (7)
            df[at] = dft * fs[j] * (1 - fs[j]);
            if (i) di[at] = dit * is[j] * (1 - is[j]);
            carry = fs[j] * delta;
        }
    }
    dc_init[channel] = carry;  // (8)
}
