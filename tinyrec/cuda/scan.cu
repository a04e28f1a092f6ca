// The diagonal linear recurrence h_t = a_t h_{t-1} + b_t. Twin of recurrences/scan.py; equation numbers are those of
// docs/recurrences/scan.md.
//
// One thread per number of a row walks through time with the state in a register. Threads of a warp stand side by side
// in a row, so every step of a warp reads and writes whole sectors. Time waits only for one multiply-add per step; the
// unrolled loop fetches the inputs of several steps ahead, which `__restrict__` allows: no output overlaps an input.
//
// Short rows and a long time leave a GPU nearly empty. Then time is cut into chunks with threads of their own, and two
// levels take three launches: scan_ends, what every chunk makes of a state before it (9); scan_forward over the chunks,
// as if each were one step (10); scan_chunks, the steps again, each chunk from its true start (11). Backwards in time
// chunks are counted from the last step on, dh stands for b, and the carry a_t delta_t for the state.
//
// Bytes per element in float32: forward 12 (a, b; h), backward 20 (a, h, dh; db, da), without da 12. In chunks of C
// steps either way 20 (a, b; a, b, h) + 24 / C.
//
// Registers in float, at most: scan_forward 48, scan_backward 64, scan_ends 48, scan_chunks 48.

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

// (9), the last p and l of every chunk. Backwards a carry is a_t times the one before it, plus a_t dh_t (4).
extern "C" __global__ void scan_ends(
    const real* __restrict__ a,  // (time, rows)
    const real* __restrict__ b,  // (time, rows): b, or dh
    real* __restrict__ p,        // (chunks, rows)
    real* __restrict__ l,        // (chunks, rows)
    int time, long long rows, int chunks, int steps, bool back) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= rows) return;
    const int k = blockIdx.y, stop = min((k + 1) * steps, time);
    real product = 1, state = 0;
    #pragma unroll 8
    for (int n = k * steps; n < stop; n++) {
        const long long i = (back ? time - 1 - n : n) * rows + c;
        const real at = a[i], bt = back ? at * b[i] : b[i];
        state = at * state + bt;  // (9)
        product *= at;
    }
    p[k * rows + c] = product, l[k * rows + c] = state;
}

// (11), without p: every chunk again, as scan_forward or scan_backward, from the state or the carry that is now known.
extern "C" __global__ void scan_chunks(
    const real* __restrict__ a,      // (time, rows)
    const real* __restrict__ b,      // (time, rows): b, or dh
    const real* __restrict__ first,  // (rows): h_init, or dh_last
    const real* __restrict__ ends,   // (chunks, rows): (10), after every chunk
    real* __restrict__ h,            // (time, rows): h, or delta
    int time, long long rows, int chunks, int steps, bool back) {
    const long long c = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= rows) return;
    const int k = blockIdx.y, stop = min((k + 1) * steps, time);
    real state = k > 0 ? ends[(k - 1) * rows + c] : first[c];
    #pragma unroll 8
    for (int n = k * steps; n < stop; n++) {
        const long long i = (back ? time - 1 - n : n) * rows + c;
        const real at = a[i], ht = back ? b[i] + state : at * state + b[i];  // (4) or (1)
        h[i] = ht;
        state = back ? at * ht : ht;
    }
}
