// LSTM. Twin of recurrences/lstm.py; equation numbers are those of docs/recurrences/lstm.md.
//
// A step needs all of h_{t-1}, so threads must wait for each other, and that is cheap only inside of a block: a block
// has one sequence, and a thread the four gates of a unit, or of every blockDim.x-th unit if there are more units than
// threads. h and dz themselves hand on what others need: written before a barrier, read after it. What only the thread
// itself needs, c and the two rows that the backward carries, it finds where it has left it.
//
// The product with w_h is the cost: every step reads all of it, 4 H^2 numbers, from the second cache unless the first
// can hold it. Neighbours in a warp read neighbours in a row of w_h, in the backward of w_h^T. The unrolled loops ask
// for 32 numbers before they use the first; __launch_bounds__(threads, 1), a promise of at most 512 threads in a block
// and no second block beside it, tells the compiler that it may spend registers on that.
//
// What is not a recurrence stays outside, as large products: z before, and dw_h (11) after it.
//
// Bytes per element of h in float32, w_h not counted: forward 40 (z; gates, c, h), backward 40 (gates, c, dh; dz).
// Registers in float, at most: lstm_forward 128, lstm_backward 72. For 512 threads there are no more than 128.
// Numbers on their way: 40 in the forward, 32 in the backward.

__device__ real sigmoid(real x) {  // without a branch; e is at most 1
    const real e = exp(x < 0 ? x : -x), s = 1 / (1 + e);
    return x < 0 ? e * s : s;
}

extern "C" __global__ void __launch_bounds__(512, 1) lstm_forward(
    const real* __restrict__ z,       // (batch, time, 4, width)
    const real* __restrict__ w_h,     // (width, 4, width)
    const real* __restrict__ h_init,  // (batch, width)
    const real* __restrict__ c_init,  // (batch, width)
    real* __restrict__ gates,         // (batch, time, 4, width)
    real* __restrict__ c,             // (batch, time, width)
    real* __restrict__ h,             // (batch, time, width)
    int batch, int time, int width) {
    const long long seq = blockIdx.x;
    for (int t = 0; t < time; t++) {
        const long long row = (seq * time + t) * width;  // of h and c; 4 row of z and gates
        const real* before = t > 0 ? h + (row - width) : h_init + seq * width;
        for (int k = threadIdx.x; k < width; k += blockDim.x) {
            const long long at = 4 * row + k;
            real p[4] = {z[at], z[at + width], z[at + 2 * width], z[at + 3 * width]};
            #pragma unroll 8
            for (int m = 0; m < width; m++) {
                const real hm = before[m];
                const long long w = 4ll * m * width + k;
                p[0] += hm * w_h[w], p[1] += hm * w_h[w + width];  // (1)
                p[2] += hm * w_h[w + 2 * width], p[3] += hm * w_h[w + 3 * width];
            }
            const real i = sigmoid(p[0]), f = sigmoid(p[1]), g = tanh(p[2]), o = sigmoid(p[3]);  // (2)
            const real ct = f * (t > 0 ? c[row - width + k] : c_init[seq * width + k]) + i * g;  // (3)
            gates[at] = i, gates[at + width] = f, gates[at + 2 * width] = g, gates[at + 3 * width] = o;
            c[row + k] = ct;
            h[row + k] = o * tanh(ct);  // (4)
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) lstm_backward(
    const real* __restrict__ gates,    // (batch, time, 4, width)
    const real* __restrict__ c,        // (batch, time, width)
    const real* __restrict__ c_init,   // (batch, width)
    const real* __restrict__ w_back,   // (4, width, width): w_h^T
    const real* __restrict__ dh_out,   // (batch, time, width)
    const real* __restrict__ dh_last,  // (batch, width)
    const real* __restrict__ dc_last,  // (batch, width)
    real* __restrict__ dz,             // (batch, time, 4, width)
    real* __restrict__ dh_init,        // (batch, width), on the way dh_next
    real* __restrict__ dc_init,        // (batch, width), on the way dc_next
    int batch, int time, int width) {
    const long long seq = blockIdx.x;
    for (int k = threadIdx.x; k < width; k += blockDim.x) {
        dh_init[seq * width + k] = dh_last[seq * width + k], dc_init[seq * width + k] = dc_last[seq * width + k];
    }
    for (int t = time - 1; t >= 0; t--) {
        const long long row = (seq * time + t) * width;
        for (int k = threadIdx.x; k < width; k += blockDim.x) {
            const long long at = 4 * row + k;
            const real i = gates[at], f = gates[at + width], g = gates[at + 2 * width], o = gates[at + 3 * width];
            const real before = t > 0 ? c[row - width + k] : c_init[seq * width + k], tc = tanh(c[row + k]);
            const real dh = dh_out[row + k] + dh_init[seq * width + k];         // (5)
            const real dc = dc_init[seq * width + k] + dh * o * (1 - tc * tc);  // (6)
            dz[at] = dc * g * i * (1 - i), dz[at + width] = dc * before * f * (1 - f);
            dz[at + 2 * width] = dc * i * (1 - g * g), dz[at + 3 * width] = dh * tc * o * (1 - o);  // (7) (10)
            dc_init[seq * width + k] = dc * f;                                  // (8)
        }
        __syncthreads();
        for (int k = threadIdx.x; k < width; k += blockDim.x) {
            real sum = 0;
            #pragma unroll 16
            for (int m = 0; m < 4 * width; m++) sum += dz[4 * row + m] * w_back[(long long)m * width + k];  // (9)
            dh_init[seq * width + k] = sum;
        }
    }
}
