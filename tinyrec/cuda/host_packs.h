// Packs side by side, of threads that do not wait for each other: pack after pack, block after block.
//
// Where a pack gives up, its threads up to that place are done by a pack that ends there, or one by one, by the plain
// text. Some threads run twice, and write the same numbers again: such a kernel cannot read what it writes.

namespace {
namespace host {

struct Lanes { operator Index() const { return {(long long)::threadIdx.x, 1}; } };
struct Thread { Lanes x; };  // no y: lanes are neighbours in x

// The threads of a block, x after x. one: the plain kernel; many: the kernel for packs.
template <class One, class Many>
void run_threads(One one, Many many) {
    auto packed = [&](unsigned x, unsigned* lanes) {
        threadIdx.x = x;
        try {
            return many(), true;
        } catch (GiveUp part) {
            return *lanes = unsigned(part.lanes), false;
        }
    };
    const unsigned n = blockDim.x;
    unsigned lanes, again;
    for (unsigned x = 0; x < n; x += lanes) {
        lanes = n - x < W ? n - x : W;
        if (lanes == W && packed(x, &lanes)) continue;
        if (lanes < W && x + lanes >= W && packed(x + lanes - W, &again)) continue;
        for (unsigned i = 0; i < lanes; i++) threadIdx.x = x + i, one();
    }
}

template <class... Ones, class... Manys, size_t... I>
void launch(void (*one)(Ones...), void (*many)(Manys...), void** slots, std::index_sequence<I...>) {
    for (unsigned long long b = 0; b < size(gridDim); b++) {
        blockIdx = unlinear((long long)b, gridDim);
        for (unsigned long long row = 0; row < size(blockDim); row += blockDim.x) {
            threadIdx = unlinear((long long)row, blockDim);
            run_threads([&] { one(Argument<Ones>::get(slots[I])...); },
                        [&] { many(Argument<Manys>::get(slots[I])...); });
        }
    }
}

template <class... Ones, class... Manys>
void launch(void (*one)(Ones...), void (*many)(Manys...), void** slots, const unsigned* shape) {
    gridDim.x = shape[0], gridDim.y = shape[1], gridDim.z = shape[2];
    blockDim.x = shape[3], blockDim.y = shape[4], blockDim.z = shape[5];
    launch(one, many, slots, std::index_sequence_for<Ones...>());
}

}  // namespace host
}  // namespace

#undef __device__
#define __device__ FAST
#define HOST_ENTRY(kernel)                                                                                           \
    extern "C" void launch_##kernel(void** slots, const bool*, const unsigned* shape, long long, host::Report*) {    \
        host::launch(&plain::kernel, &packs::kernel, slots, shape);                                                  \
    }
