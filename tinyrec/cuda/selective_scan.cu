// S6, the selective scan of Mamba. Twin of recurrences/selective_scan.py; equation numbers are those of
// docs/recurrences/selective_scan.md.
//
// A channel has N states that never meet, so N times the work of the other recurrences, for any N. A block has 32
// channels of one sequence: a lane is a channel, and the warps share out the states. Time goes in tiles of STEPS steps.
// A thread has dt and u of a tile in registers and takes state after state through it; a state that is not at work lies
// in `saved`, where the backward needs it anyhow. Sums over the states of a channel, (4) (10) (13), are added over the
// warps in shared memory, once a tile. The backward takes the tiles from last to first, each once forward, to have
// decay and h of its steps in registers, and then back.
//
// A step with dt = 0 keeps the state as it is, and one with dy = 0 adds nothing to a gradient: so steps behind the last
// one and lanes beside the last channel go along with zeros, as shuffles and barriers need all lanes.
//
// Bytes per element of u in float32, each number once: forward 12 (u, dt; y), backward 20 (u, dt, dy; du, ddt); in both
// N / 4 for `saved`, and in the backward N / 4 for db and dc, which have a row per 32 channels. The warps of a block
// read the same u and dt, and all blocks of a sequence the same b and c: but for the first they come from a cache.
// Registers in float, at most: selective_scan_forward 96, selective_scan_backward 228. Of a tile they have 48 and 80
// numbers in them, and in the backward 49 of the state at work: decay, h, b.

#define STEPS (64 / (int)sizeof(real))  // of a tile: 16 in float; 8 in double, which takes two registers
#define WARPS 8                         // of a block, at most
#define LANES 32                        // of a warp; the simd build takes it as one (docs/cuda.md, 7)

__device__ real select(bool where, real a, real b) { return where ? a : b; }

extern "C" __global__ void selective_scan_forward(
    const real* __restrict__ u,   // (batch, time, width)
    const real* __restrict__ dt,  // (batch, time, width)
    const real* __restrict__ a,   // (states, width)
    const real* __restrict__ b,   // (batch, time, states)
    const real* __restrict__ c,   // (batch, time, states)
    const real* __restrict__ d,   // (width)
    real* __restrict__ y,         // (batch, time, width)
    real* __restrict__ saved,     // (saves, batch, states, width): before each tile, the first is given; after the last
    int batch, int time, int width, int states, int saves, int groups) {
    __shared__ real parts[WARPS][STEPS][LANES];
    const int warp = threadIdx.y;
    const long long lane = threadIdx.x, channel = blockIdx.x % groups * LANES + lane;
    const bool inside = channel < width;
    const long long seq = blockIdx.x / groups, apart = (long long)batch * states * width;  // of two tiles in `saved`
    const real direct = inside && warp == 0 ? d[channel] : real(0);
    for (int tile = 0; tile < saves - 1; tile++) {
        const long long start = seq * time + tile * STEPS;
        const int left = time - tile * STEPS;
        real step[STEPS], fed[STEPS], sum[STEPS];
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const long long i = (start + j) * width + channel;
            const bool there = j < left && inside;
            const real ut = there ? u[i] : real(0);
            step[j] = there ? dt[i] : real(0);
            fed[j] = step[j] * ut, sum[j] = direct * ut;
        }
        for (int n = warp; n < states; n += blockDim.y) {
            const long long s = tile * apart + (seq * states + n) * width + channel;
            const real rate = inside ? a[(long long)n * width + channel] : real(0);
            const long long first = start * states + n;
            real h = inside ? saved[s] : real(0);
            #pragma unroll
            for (int j = 0; j < STEPS; j++) {
                const long long i = first + (long long)j * states;
                h = exp(step[j] * rate) * h + fed[j] * (j < left ? b[i] : real(0));  // (1) (2) (3)
                sum[j] += (j < left ? c[i] : real(0)) * h;                           // (4)
            }
            if (inside) saved[s + apart] = h;
        }
        #pragma unroll
        for (int j = 0; j < STEPS; j++) parts[warp][j][lane] = sum[j];
        __syncthreads();
        for (int j = warp; j < min(STEPS, left); j += blockDim.y) {
            real total = 0;
            for (int k = 0; k < blockDim.y; k++) total += parts[k][j][lane];
            if (inside) y[(start + j) * width + channel] = total;
        }
        __syncthreads();
    }
}

// Sums over the lanes of a warp of 2 STEPS numbers each: lane k gets the sum of the k-th. Two lanes that differ in one
// bit each hand over the half that the other goes on with, and so 32 numbers take 31 shuffles, not 5 times 32.
template <class Array>
__device__ __forceinline__ real sums_over_lanes(Array& x, long long lane) {
    #pragma unroll
    for (int by = LANES / 2; by >= 2 * STEPS; by /= 2) {  // more lanes than numbers: both halves go on with all
        #pragma unroll
        for (int k = 0; k < 2 * STEPS; k++) x[k] += __shfl_xor_sync(0xffffffffu, real(x[k]), by);
    }
    #pragma unroll
    for (int by = STEPS; by > 0; by /= 2) {
        #pragma unroll
        for (int k = 0; k < STEPS; k++) {
            if (k >= by) continue;
            const real lower = x[k], upper = x[k + by];
            const real got = __shfl_xor_sync(0xffffffffu, select(lane & by, lower, upper), by);
            x[k] = select(lane & by, upper, lower) + got;
        }
    }
    return x[0];
}

// da, dd have one row per sequence, db and dc one per 32 channels: their sums are the gradients. A warp writes db and dc
// of a tile side by side, steps behind the last one too; in double, lanes 16 to 31 repeat them.
extern "C" __global__ void selective_scan_backward(
    const real* __restrict__ u,        // (batch, time, width)
    const real* __restrict__ dt,       // (batch, time, width)
    const real* __restrict__ a,        // (states, width)
    const real* __restrict__ b,        // (batch, time, states)
    const real* __restrict__ c,        // (batch, time, states)
    const real* __restrict__ d,        // (width)
    const real* __restrict__ saved,    // (tiles, batch, states, width)
    const real* __restrict__ dy,       // (batch, time, width)
    const real* __restrict__ dh_last,  // (batch, states, width)
    real* __restrict__ du,             // (batch, time, width)
    real* __restrict__ ddt,            // (batch, time, width)
    real* __restrict__ da,             // (batch, states, width)
    real* __restrict__ dbc,            // (groups, batch, states, tiles, 32): of a tile STEPS of db, then of dc
    real* __restrict__ dd,             // (batch, width)
    real* __restrict__ dh_init,        // (batch, states, width)
    int batch, int time, int width, int states, int tiles, int groups) {
    __shared__ real parts_w[WARPS][STEPS][LANES];
    __shared__ real parts_e[WARPS][STEPS][LANES];
    const int warp = threadIdx.y, group = blockIdx.x % groups;
    const long long lane = threadIdx.x, channel = group * LANES + lane;
    const bool inside = channel < width;
    const long long seq = blockIdx.x / groups, apart = (long long)batch * states * width;
    real sum_dd = 0;
    for (int tile = tiles - 1; tile >= 0; tile--) {
        const long long start = seq * time + tile * STEPS;
        const int left = time - tile * STEPS;
        real step[STEPS], ut[STEPS], dyt[STEPS], w[STEPS], e[STEPS];
        #pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const long long i = (start + j) * width + channel;
            const bool there = j < left && inside;
            step[j] = there ? dt[i] : real(0), ut[j] = there ? u[i] : real(0), dyt[j] = there ? dy[i] : real(0);
            sum_dd += dyt[j] * ut[j];  // (8)
            w[j] = 0, e[j] = 0;
        }
        for (int n = warp; n < states; n += blockDim.y) {
            const long long s = (seq * states + n) * width + channel, first = start * states + n;
            const real rate = inside ? a[(long long)n * width + channel] : real(0);
            real h[STEPS + 1], decay[STEPS], sums[2 * STEPS], bt[STEPS];  // h before each step and after the last
            h[0] = inside ? saved[tile * apart + s] : real(0);
            #pragma unroll
            for (int j = 0; j < STEPS; j++) {
                bt[j] = j < left ? b[first + (long long)j * states] : real(0);
                decay[j] = exp(step[j] * rate);                        // (1)
                h[j + 1] = decay[j] * h[j] + step[j] * ut[j] * bt[j];  // (2) (3)
            }
            real carry = 0, sum_da = 0;  // decay_{t+1} delta_{t+1}; of the tiles behind this one
            if (inside && tile == tiles - 1) carry = dh_last[s];
            if (inside && tile < tiles - 1) carry = dh_init[s], sum_da = da[s];
            #pragma unroll
            for (int j = STEPS - 1; j >= 0; j--) {
                const real ct = j < left ? c[first + (long long)j * states] : real(0);
                const real delta = dyt[j] * ct + carry;  // (5) (6)
                sums[j] = delta * (step[j] * ut[j]);     // (9)
                sums[STEPS + j] = dyt[j] * h[j + 1];     // (7)
                w[j] += delta * bt[j];                   // (10)
                carry = decay[j] * delta;
                const real st = carry * h[j];            // (12)
                e[j] += st * rate;                       // the sum of (13)
                sum_da += st * step[j];                  // (14)
            }
            if (inside) dh_init[s] = carry, da[s] = sum_da;  // after the first tile (15)
            const long long row = ((group * (long long)batch + seq) * states + n) * tiles + tile;
            dbc[row * LANES + lane] = sums_over_lanes(sums, lane);
        }
        #pragma unroll
        for (int j = 0; j < STEPS; j++) parts_w[warp][j][lane] = w[j], parts_e[warp][j][lane] = e[j];
        __syncthreads();
        for (int j = warp; j < min(STEPS, left); j += blockDim.y) {
            real all_w = 0, all_e = 0;
            for (int k = 0; k < blockDim.y; k++) all_w += parts_w[k][j][lane], all_e += parts_e[k][j][lane];
            const long long i = (start + j) * width + channel;
            if (inside) du[i] = d[channel] * dy[i] + dt[i] * all_w;  // (11)
            if (inside) ddt[i] = u[i] * all_w + all_e;               // (13)
        }
        __syncthreads();
    }
    if (warp == 0 && inside) dd[seq * width + channel] = sum_dd;
}
