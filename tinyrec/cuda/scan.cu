// The diagonal linear recurrence h_t = a_t h_{t-1} + b_t. Twin of recurrences/scan.py; equation numbers are those of
// docs/recurrences/scan.md.
//
// One thread per number of a row walks through time with the state in a register. Threads of a warp stand side by side
// in a row, so every step of a warp reads and writes whole sectors. Time waits only for one multiply-add per step; the
// unrolled loop fetches the inputs of several steps ahead, which `__restrict__` allows: no output overlaps an input.
//
// Bytes per element in float32: forward 12 (a, b; h), backward 20 (a, h, dh; db, da), without da 12.

// (1). rows numbers in a row, however many axes they had.
extern "C" __global__ void scan_forward(
    const real* __restrict__ a,       // (time, rows)
    const real* __restrict__ b,       // (time, rows)
    const real* __restrict__ h_init,  // (rows)
    real* __restrict__ h,             // (time, rows)
    int time, long long rows) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= rows) return;
    real state = h_init[c];
    #pragma unroll 8
    for (int t = 0; t < time; t++) {
        const long long i = t * rows + c;
        state = a[i] * state + b[i];  // (1)
        h[i] = state;
    }
}

// (3) to (7), from the last step to the first. delta is also db (5). With null for h, h_init and da it is adjoint_scan.
extern "C" __global__ void scan_backward(
    const real* __restrict__ a,        // (time, rows)
    const real* __restrict__ h,        // (time, rows) or null
    const real* __restrict__ h_init,   // (rows) or null
    const real* __restrict__ dh,       // (time, rows)
    const real* __restrict__ dh_last,  // (rows)
    real* __restrict__ da,             // (time, rows) or null
    real* __restrict__ delta,          // (time, rows)
    real* __restrict__ dh_init,        // (rows)
    int time, long long rows) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= rows) return;
    real carry = dh_last[c];  // a_{t+1} delta_{t+1}, in the beginning (3)
    #pragma unroll 8
    for (int t = time - 1; t >= 0; t--) {
        const long long i = t * rows + c;
        const real delta_t = dh[i] + carry;  // (4)
        delta[i] = delta_t;                  // (5)
        if (da) da[i] = delta_t * (t > 0 ? h[i - rows] : h_init[c]);  // (6)
        carry = a[i] * delta_t;
    }
    dh_init[c] = carry;  // (7)
}
