// Threads that can wait for each other: every thread of a block is a fiber, with a stack of its own.
//
// The schedule is always the same: threads run in order, each until it waits or ends; when none can go on, whoever has
// all its partners at the same barrier is let through. A barrier that some thread never reaches is found right here.
// A fiber is started by ucontext and switched by _setjmp/_longjmp, which cost no system call.

#include <setjmp.h>
#include <ucontext.h>

#include <memory>

namespace {
namespace host {

enum State { READY, AT_BARRIER, AT_SYNCWARP, AT_SHUFFLE, DONE };

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    std::unique_ptr<char[]> stack;
    State state = READY;
    Line line;           // of the barrier it waits at
    unsigned mask = 0;   // of the lanes it waits for
    int exchanges = 0;   // counts its shuffles
};

const size_t STACK = 256 * 1024;
thread_local std::vector<Fiber>* fibers;
thread_local jmp_buf scheduler;
thread_local int current;                   // the thread that runs, counted through the block
thread_local int epoch;                     // block barriers passed
thread_local int warp_epoch[32];            // __syncwarp passed, of each warp
thread_local double slots_of[2][32][32];    // what shuffles exchange: by parity, warp, lane
thread_local void (*body_call)(void*);
thread_local void* body_data;

inline __attribute__((noinline)) void wait(State state, unsigned mask, const Line& line) {
    Fiber& me = (*fibers)[size_t(current)];
    me.state = state, me.mask = mask, me.line = line;
    if (!_setjmp(me.at)) _longjmp(scheduler, 1);
}

inline void fiber_main() {
    body_call(body_data);
    wait(DONE, 0, Line());  // never comes back
}

inline __attribute__((noinline)) void resume(int i) {
    Fiber& fiber = (*fibers)[size_t(i)];
    current = i;
    threadIdx = unlinear(i, blockDim);
    if (_setjmp(scheduler)) return;
    if (fiber.stack) _longjmp(fiber.at, 1);
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
}

inline bool together(const Fiber& a, const Fiber& b) {
    return a.state == b.state && a.line == b.line && a.mask == b.mask;
}

// The lanes of mask that exist in the warp of thread i: do they all wait at the same warp barrier as i?
inline bool warp_complete(int i) {
    const Fiber& me = (*fibers)[size_t(i)];
    for (int lane = 0, j = i / 32 * 32; lane < 32 && j < int(fibers->size()); lane++, j++) {
        const Fiber& other = (*fibers)[size_t(j)];
        if ((me.mask >> lane & 1) && !together(me, other)) return false;
    }
    return true;
}

// Lets through whom nothing holds any more. False if that is nobody.
inline bool release() {
    const int n = int(fibers->size());
    bool some = false;
    for (int i = 0; i < n; i++) {
        const Fiber& f = (*fibers)[size_t(i)];
        if ((f.state != AT_SYNCWARP && f.state != AT_SHUFFLE) || !warp_complete(i)) continue;
        if (f.state == AT_SYNCWARP) warp_epoch[i / 32]++;  // a shuffle promises nothing about memory
        const unsigned mask = f.mask;
        for (int lane = 0, j = i / 32 * 32; lane < 32 && j < n; lane++, j++) {
            if (mask >> lane & 1) (*fibers)[size_t(j)].state = READY;
        }
        some = true;
    }
    if (some) return true;
    for (const Fiber& f : *fibers) {
        if (f.state != AT_BARRIER || !(f.line == (*fibers)[0].line)) return false;
    }
    for (Fiber& f : *fibers) f.state = READY;
    epoch++;
    return true;
}

// Nobody can go on: names one thread that waits and one that is elsewhere.
inline void stuck() {
    int waits = -1, elsewhere = -1;
    for (int i = int(fibers->size()) - 1; i >= 0; i--) {
        if ((*fibers)[size_t(i)].state != DONE) waits = i;
    }
    const Fiber& first = (*fibers)[size_t(waits)];
    for (int i = int(fibers->size()) - 1; i >= 0; i--) {
        const Fiber& f = (*fibers)[size_t(i)];
        const bool partner = first.state == AT_BARRIER || (i / 32 == waits / 32 && (first.mask >> (i % 32) & 1));
        if (partner && !together(f, first)) elsewhere = i;
    }
    threadIdx = unlinear(waits, blockDim);
    const Fiber& other = (*fibers)[size_t(elsewhere)];
    finding(first.line, "divergent",
            "waits at a barrier that thread " + place(unlinear(elsewhere, blockDim), blockDim) + " never reaches: it " +
                (other.state == DONE ? "has ended" : "waits at " + place(other.line)) +
                "; a divergent barrier");
}

template <class Body>
void run_block(Body body) {
    std::vector<Fiber> all((size_t(size(blockDim))));
    fibers = &all;
    epoch = 0;
    memset(warp_epoch, 0, sizeof warp_epoch);
    body_call = [](void* data) { (*(Body*)data)(); };
    body_data = &body;
    do {
        for (size_t i = 0; i < all.size(); i++) {
            if (all[i].state == READY) resume(int(i));
        }
    } while (release());
    for (const Fiber& f : all) {
        if (f.state != DONE) return stuck();
    }
}

// For the lanes of mask, of which the caller must be one.
inline bool wait_for_warp(State state, unsigned mask, const Line& line) {
    const bool named = mask >> (current % 32) & 1;
    if (named) wait(state, mask, line);
    else finding(line, "mask", "is not in the mask that it names");
    return named;
}

template <class T>
T exchange(unsigned mask, T value, int from, const Line& line) {
    static_assert(sizeof(T) <= sizeof(double), "a shuffle moves at most 8 bytes");
    Fiber& me = (*fibers)[size_t(current)];
    const int warp = current / 32, lane = current % 32, parity = me.exchanges++ % 2;
    memcpy(&slots_of[parity][warp][lane], &value, sizeof value);
    if (!wait_for_warp(AT_SHUFFLE, mask, line)) return value;
    const bool there = warp * 32 + from < int(fibers->size()) && (mask >> from & 1);
    if (there) memcpy(&value, &slots_of[parity][warp][from], sizeof value);
    else finding(line, "absent", "shuffles from lane " + std::to_string(from) + ", which does not take part");
    return value;
}

}  // namespace host

inline void __syncthreads(host::Line line = host::Line()) { host::wait(host::AT_BARRIER, 0, line); }

inline void __syncwarp(unsigned mask = 0xffffffffu, host::Line line = host::Line()) {
    host::wait_for_warp(host::AT_SYNCWARP, mask, line);
}

// A lane outside of its group of `width` gets its own value back.
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, host::Line line = host::Line()) {
    const int lane = host::current % 32;
    return host::exchange(mask, value, lane / width * width + (from & (width - 1)), line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, host::Line line = host::Line()) {
    const int lane = host::current % 32, from = lane + int(by);
    return host::exchange(mask, value, from / width == lane / width ? from : lane, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, host::Line line = host::Line()) {
    const int lane = host::current % 32, from = lane - int(by);
    return host::exchange(mask, value, from >= lane / width * width ? from : lane, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, host::Line line = host::Line()) {
    const int lane = host::current % 32, from = lane ^ with;
    return host::exchange(mask, value, from / width <= lane / width ? from : lane, line);
}

}  // namespace
