// What the check build remembers of every access: who, when, where in memory. host_check.h has the pointers that ask.
//
// Behind every element lies a Cell, which knows who wrote and who read it last, and when. Two threads of a block race
// if both touch an element with no barrier in between and one of them writes; two blocks race if one of them writes.
// So a missing barrier is found although the schedule of the fibers happens to give the right values.
//
// Traffic. asked: bytes that threads read and write. distinct: bytes of elements touched at all, the floor. moved: a
// warp's accesses of one step (one line, one array, the same time around) go together, in sectors of 32 bytes.

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>
#include <unordered_set>

namespace {
namespace host {

const int NONE = -1, MANY = -2;

struct Moment { int block = NONE, warp = NONE, thread = NONE, epoch = 0, warp_epoch = 0; };

struct Cell {
    Moment write, read;  // the last ones; read.warp and read.thread are MANY where several share the moment
    int reader_block = NONE, writer_block = NONE;
    bool set = false, touched = false;
};

struct Watched {  // an argument, or an array of the kernel's own
    std::string name;
    char* base = nullptr;
    long long count = 0;
    int item = 1, id = 0;
    bool on_chip = false;  // in shared memory or a thread's own: begins without values, costs no traffic
    Cell* cells = nullptr;
};

struct Check {
    std::vector<Watched> arguments;
    std::vector<std::vector<Cell>> memories;                     // arguments that overlap share one
    std::map<std::string, Watched> shared;                       // by line and name, of the current block
    std::map<std::tuple<const char*, int, int>, int> sites;      // (file, line, array) -> its number
    std::vector<std::vector<int>> rounds;                        // thread, site -> accesses so far
    std::unordered_set<unsigned long long> sectors;              // of the current block
};
thread_local Check* check;

inline Moment now() {
    Moment m;
    m.block = linear(blockIdx, gridDim), m.thread = linear(threadIdx, blockDim), m.warp = m.thread / 32;
    m.epoch = epoch, m.warp_epoch = warp_epoch[m.warp];
    return m;
}

// Is nothing between the two moments of one block that orders them? Threads of a warp are also ordered by __syncwarp.
inline bool unordered(const Moment& then, const Moment& me) {
    if (then.block != me.block || then.epoch != me.epoch) return false;
    return then.warp != me.warp || (then.warp_epoch == me.warp_epoch && then.thread != me.thread);
}

inline void count_traffic(Watched& array, long long i, const Moment& me, const Line& line) {
    report->asked += array.item;
    const auto key = std::make_tuple(line.file, line.number, array.id);
    int& site = check->sites.emplace(key, int(check->sites.size())).first->second;
    std::vector<int>& rounds = check->rounds[size_t(me.thread)];
    if (int(rounds.size()) <= site) rounds.resize(size_t(site) + 1);
    const unsigned long long round = (unsigned long long)rounds[size_t(site)]++;
    const unsigned long long sector = (unsigned long long)(i * array.item / 32);
    check->sectors.insert((unsigned long long)me.warp << 59 | (unsigned long long)site << 51 | round << 31 | sector);
}

inline std::string named(const char* unit, int number, dim3 shape) {
    return number == MANY ? "others" : unit + place(unlinear(number, shape), shape);
}

// True if element i may be read or written.
inline bool watch(Watched& array, long long i, bool write, const Line& line) {
    const auto found = [&](const char* kind, const std::string& why) {
        const std::string what = (write ? "writes " : "reads ") + array.name + "[" + std::to_string(i) + "]";
        finding(line, kind + array.name, what + why);
    };
    if (i < 0 || i >= array.count) {
        found("bounds ", " of " + std::to_string(array.count) + ": out of bounds");
        return false;
    }
    Cell& cell = array.cells[i];
    const Moment me = now();
    if (array.on_chip && !write && !cell.set) found("unset ", ", which nobody has written: uninitialised");
    const bool after_write = unordered(cell.write, me), after_read = write && unordered(cell.read, me);
    if (after_write || after_read) {
        const std::string other = after_write ? named("thread ", cell.write.thread, blockDim) + " wrote"
                                              : named("thread ", cell.read.thread, blockDim) + " read";
        found("race ", ", which " + other + " with no barrier in between: a race");
    }
    const bool foreign_write = cell.writer_block != NONE && cell.writer_block != me.block;
    const bool foreign_read = cell.reader_block != NONE && cell.reader_block != me.block;
    if (foreign_write || (write && foreign_read)) {
        const std::string other = foreign_write ? named("block ", cell.writer_block, gridDim) + " wrote"
                                                : named("block ", cell.reader_block, gridDim) + " read";
        found("blocks ", ", which " + other + ": a race, blocks have no order");
    }
    if (write) {
        cell.write = me, cell.writer_block = me.block, cell.set = true;
    } else {
        const bool same_time = cell.read.block == me.block && cell.read.epoch == me.epoch;
        const bool same_warp = same_time && cell.read.warp == me.warp;
        const bool same_step = same_warp && cell.read.warp_epoch == me.warp_epoch;
        const int before = cell.read.thread;
        cell.reader_block = foreign_read ? MANY : me.block;
        cell.read.block = me.block, cell.read.epoch = me.epoch, cell.read.warp_epoch = me.warp_epoch;
        cell.read.warp = same_time && !same_warp ? MANY : me.warp;
        cell.read.thread = same_step && before != me.thread ? MANY : me.thread;
    }
    if (!array.on_chip) {
        count_traffic(array, i, me, line);
        if (!cell.touched) report->distinct += array.item;
        cell.touched = true;
    }
    return true;
}

// The pointer arguments, in the order of their addresses: one that begins before the last one ends shares its cells.
inline void begin_launch(void** slots, const bool* arrays, int n) {
    static thread_local Check all;
    check = &(all = Check());
    std::vector<Array*> order;
    for (int i = 0; i < n; i++) {
        if (arrays[i]) order.push_back((Array*)slots[i]);
    }
    std::sort(order.begin(), order.end(), [](Array* a, Array* b) { return a->base < b->base; });
    check->arguments.resize(order.size());
    check->memories.reserve(order.size());
    char *first = nullptr, *last = nullptr;
    for (size_t i = 0; i < order.size(); i++) {
        Array& a = *order[i];
        if (i == 0 || (char*)a.base >= last) {
            first = (char*)a.base, last = first;
            for (size_t j = i; j < order.size() && ((char*)order[j]->base < last || j == i); j++) {
                last = std::max(last, (char*)order[j]->base + order[j]->bytes);
            }
            check->memories.emplace_back(size_t((last - first) / a.item + 1));
        }
        Watched& w = check->arguments[i];
        w.name = a.name, w.base = (char*)a.base, w.item = a.item, w.count = a.bytes / a.item, w.id = int(i);
        w.cells = check->memories.back().data() + (w.base - first) / a.item;
        a.watched = a.base ? &w : nullptr;
    }
}

inline void begin_block() { check->rounds.assign(size_t(size(blockDim)), {}); }
inline void end_block() {
    report->moved += 32 * (long long)check->sectors.size();
    check->sectors.clear();
    for (auto& entry : check->shared) {
        delete[] entry.second.cells;
        delete[] entry.second.base;
    }
    check->shared.clear();
}

}  // namespace host
}  // namespace
