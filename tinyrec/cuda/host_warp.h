// A whole warp as one pack, for a text whose threads wait for each other and that says `#define LANES 32`.
//
// A block has one warp, 32 threads in x, so nobody is left to wait for: __syncthreads() is nothing, shared memory an
// array, and a shuffle puts the lanes of a pack into another order. A warp runs once, from its beginning to its end, so
// a kernel may read what it writes.
// Where the lanes part, or a block has another size, the launch ends with a finding, which is raised as an error.

namespace {
namespace host {

struct Lane { operator Index() const { return {0, 1}; } };
struct Thread { Lane x; int y = 0; };

FAST ints counted() {  // 0, 1, 2, ...
    ints n;
    for (int lane = 0; lane < VECTOR; lane++) n[lane] = lane;
    return n;
}

FAST Mask operator&(Index a, int bits) {  // lane & 4: has this lane that bit?
    Mask set;
    EACH_PART set.v[i] = ((whole(a.at) + whole(a.slope) * (i * VECTOR + counted())) & bits) != 0;
    return set;
}

FAST vec in_order(vec x, ints from) {
#ifdef __clang__  // has no such word, but makes the same of a loop
    vec y;
    for (int lane = 0; lane < VECTOR; lane++) y[lane] = x[from[lane]];
    return y;
#else
    return __builtin_shuffle(x, from);
#endif
}

FAST Pack __shfl_xor_sync(unsigned, Pack x, int by) {
    Pack y;
    EACH_PART y.v[i] = in_order(x.v[i ^ by / VECTOR], counted() ^ by % VECTOR);
    return y;
}

template <class T>
struct Shared;  // SHARED(real[8][32], x): only the last index differs from lane to lane

template <size_t N>
struct Shared<Pack[N]> {
    number numbers[N];
    Target operator[](Index i) { return ptr<Pack>{numbers}[i]; }
};

template <class Row, size_t N>
struct Shared<Row[N]> {
    Shared<Row> rows[N];
    Shared<Row>& operator[](int i) { return rows[i]; }
};

template <class... Args, size_t... I>
void launch(void (*kernel)(Args...), void** slots, const unsigned* shape, Report* out, std::index_sequence<I...>) {
    gridDim.x = shape[0], gridDim.y = shape[1], gridDim.z = shape[2];
    blockDim.x = shape[3], blockDim.y = shape[4], blockDim.z = shape[5];
    const char* wrong = nullptr;
    if (blockDim.x != W || size(blockDim) != W) wrong = "a block of more or less than one warp, 32 threads";
    for (unsigned long long b = 0; b < size(gridDim) && !wrong; b++) {
        blockIdx = unlinear((long long)b, gridDim);
        try {
            kernel(Argument<Args>::get(slots[I])...);
        } catch (GiveUp) {
            wrong = "the threads of a warp part";
        }
    }
    if (wrong) snprintf(out->text, sizeof out->text, "%s: the simd build takes whole warps as one\n", wrong);
}

template <class... Args>
void launch(void (*kernel)(Args...), void** slots, const unsigned* shape, Report* out) {
    launch(kernel, slots, shape, out, std::index_sequence_for<Args...>());
}

}  // namespace host

inline void __syncthreads() {}
}  // namespace

#undef __device__
#define __device__ FAST
#undef __forceinline__
#define __forceinline__
#define SHARED(T, name) static thread_local host::Shared<T> name
#define HOST_ENTRY(kernel)                                                                                             \
    extern "C" void launch_##kernel(void** slots, const bool*, const unsigned* shape, long long, host::Report* out) {  \
        host::launch(&packs::kernel, slots, shape, out);                                                               \
    }
