// The grid: every block, and every thread of it, one after the other. This comes after the other headers, before the
// kernels.

namespace {
namespace host {

#ifndef HOST_FIBERS
template <class Body>
void run_block(Body body) {
    for (unsigned long long i = 0; i < size(blockDim); i++) {
        threadIdx = unlinear((long long)i, blockDim);
        body();
    }
}
#endif

#ifndef HOST_CHECK
inline void begin_launch(void**, const bool*, int) {}
inline void begin_block() {}
inline void end_block() {}
#endif

// The arguments come as CUDA's own kernelParams do: one address each, of the value or of the pointer.
template <class... Args, size_t... I>
void launch(void (*kernel)(Args...), void** slots, std::index_sequence<I...>) {
    for (unsigned long long b = 0; b < size(gridDim); b++) {
        blockIdx = unlinear((long long)b, gridDim);
        begin_block();
        run_block([&] { kernel(Argument<Args>::get(slots[I])...); });
        end_block();
    }
}

template <class... Args>
void launch(void (*kernel)(Args...), void** slots, const bool* arrays, const unsigned* shape, long long shared,
            Report* out) {
    std::vector<char> memory(size_t(shared) + 16);
    std::string lines;
    report = out, said = &lines, dynamic_bytes = shared;
    dynamic_shared = (char*)(((unsigned long long)memory.data() + 15) / 16 * 16);
    gridDim.x = shape[0], gridDim.y = shape[1], gridDim.z = shape[2];
    blockDim.x = shape[3], blockDim.y = shape[4], blockDim.z = shape[5];
    begin_launch(slots, arrays, int(sizeof...(Args)));
    launch(kernel, slots, std::index_sequence_for<Args...>());
}

}  // namespace host
}  // namespace

#ifndef HOST_CHECK
#define SHARED_DYNAMIC(T, name) T* name = (T*)host::dynamic_shared
#endif
#define HOST_ENTRY(kernel)                                                                                       \
    extern "C" void launch_##kernel(void** slots, const bool* arrays, const unsigned* shape, long long shared,    \
                                    host::Report* out) {                                                          \
        host::launch(&kernel, slots, arrays, shape, shared, out);                                                 \
    }
