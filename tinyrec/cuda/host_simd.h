// W neighbouring threads as one pack: the text of a kernel, read a second time with a vector where it says `real`.
//
// The host has rewritten `real*` to `ptr<real>` and `long long` to `Index`. An Index is a number that grows by `slope`
// from one lane of the pack to the next: threadIdx.x has slope 1, all that is the same for all threads has slope 0, and
// arithmetic carries it on. So x[i] is a load of W neighbours, or of one number for all. The compiler knows every slope
// in advance; nothing of it is left at run time.
//
// Where the lanes part (a guard that only some of them pass, a row that ends between them, x[2 * c]), the pack gives
// up. Its threads up to that place are then done by a pack that ends there, or one by one, by the plain text. Some
// threads run twice, and write the same numbers again: a kernel for packs cannot read what it writes.
// A condition on numbers must be a select(x < y, a, b), or asked of all lanes, every(x < y): no branch can be taken by
// half of a pack.
// What a text asks beyond this does not compile.

namespace {
namespace host {

struct GiveUp { int lanes; };  // so many of the first lanes agree

struct Index {
    long long at, slope = 0;
    Index() = default;
    template <class N, class = std::enable_if_t<std::is_integral<N>::value>>
    Index(N at) : at((long long)at) {}
    Index(long long at, long long slope) : at(at), slope(slope) {}

    friend Index operator+(Index a, Index b) { return {a.at + b.at, a.slope + b.slope}; }
    friend Index operator-(Index a, Index b) { return {a.at - b.at, a.slope - b.slope}; }
    friend Index operator*(Index a, Index b) {
        if (a.slope && b.slope) throw GiveUp{W};
        return {a.at * b.at, a.at * b.slope + a.slope * b.at};
    }
    // In rows of b numbers: which row, which place. All lanes must be in one row.
    friend Index operator/(Index a, Index b) { return one_row(a, b), Index(a.at / b.at); }
    friend Index operator%(Index a, Index b) { return one_row(a, b), Index(a.at % b.at, a.slope); }
    static void one_row(Index a, Index b) {
        if (!a.slope && !b.slope) return;
        if (a.slope != 1 || b.slope) throw GiveUp{W};
        if (b.at - a.at % b.at < W) throw GiveUp{int(b.at - a.at % b.at)};
    }
};

template <class Same>
bool agreed(Index a, Index b, Same same) {
    const bool first = same(a.at, b.at);
    for (int lane = 1; a.slope != b.slope && lane < W; lane++) {
        if (same(a.at + lane * a.slope, b.at + lane * b.slope) != first) throw GiveUp{lane};
    }
    return first;
}

struct Mask { ints v; };

struct Pack {
    vec v;
    Pack() = default;
    Pack(vec v) : v(v) {}
    template <class N, class = std::enable_if_t<std::is_arithmetic<N>::value>>
    Pack(N x) : v(all(number(x))) {}
    Pack operator-() const { return -v; }
    Pack& operator+=(Pack x) { return v += x.v, *this; }
    Pack& operator-=(Pack x) { return v -= x.v, *this; }
    Pack& operator*=(Pack x) { return v *= x.v, *this; }
    Pack& operator/=(Pack x) { return v /= x.v, *this; }
};

FAST Pack operator+(Pack a, Pack b) { return a.v + b.v; }
FAST Pack operator-(Pack a, Pack b) { return a.v - b.v; }
FAST Pack operator*(Pack a, Pack b) { return a.v * b.v; }
FAST Pack operator/(Pack a, Pack b) { return a.v / b.v; }

#define COMPARES(op)                                                                              \
    FAST Mask operator op(Pack a, Pack b) { return {a.v op b.v}; }                                \
    inline bool operator op(Index a, Index b) {                                                   \
        return agreed(a, b, [](long long x, long long y) { return x op y; });                     \
    }
COMPARES(<) COMPARES(<=) COMPARES(>) COMPARES(>=) COMPARES(==) COMPARES(!=)

FAST Mask operator&&(Mask a, Mask b) { return {a.v & b.v}; }
FAST Mask operator||(Mask a, Mask b) { return {a.v | b.v}; }
FAST Mask operator!(Mask a) { return {~a.v}; }

FAST Pack select(Mask where, Pack a, Pack b) { return where.v ? a.v : b.v; }
FAST bool every(Mask here) {
    for (int lane = 0; lane < W; lane++) {
        if (!here.v[lane]) return false;
    }
    return true;
}
FAST Pack exp(Pack x) { return exp_of(x.v); }
FAST Pack expm1(Pack x) { return expm1_of(x.v); }
FAST Pack tanh(Pack x) { return tanh_of(x.v); }
FAST Pack sqrt(Pack x) { return sqrt_of(x.v); }
FAST Pack fabs(Pack x) { return (vec)((ints)x.v & ~(ints)all(number(-0.0))); }
FAST Pack fmax(Pack a, Pack b) { return b.v > a.v || a.v != a.v ? b.v : a.v; }  // of a NaN and x it is x
FAST Pack fmin(Pack a, Pack b) { return b.v < a.v || a.v != a.v ? b.v : a.v; }
FAST Pack max(Pack a, Pack b) { return fmax(a, b); }
FAST Pack min(Pack a, Pack b) { return fmin(a, b); }

#define LANE_BY_LANE(name)                                                      \
    inline Pack name(Pack x) {                                                  \
        for (int lane = 0; lane < W; lane++) x.v[lane] = ::name(x.v[lane]);     \
        return x;                                                               \
    }
LANE_BY_LANE(log) LANE_BY_LANE(log1p)

template <class T>
struct ptr;  // int* and the like: a kernel for packs writes only real

template <class T>
struct ptr<const T> {  // what is not real is read by all lanes in one place
    const T* base;
    explicit operator bool() const { return base != nullptr; }
    T operator[](Index i) const {
        if (i.slope) throw GiveUp{W};
        return base[i.at];
    }
};

template <>
struct ptr<const Pack> {
    const number* base;
    explicit operator bool() const { return base != nullptr; }
    Pack operator[](Index i) const {
        if (i.slope == 0) return base[i.at];
        if (i.slope != 1) throw GiveUp{W};
        Pack x;
        memcpy(&x.v, base + i.at, BYTES);
        return x;
    }
};

struct Target {  // x[i] on the left of =
    number* to;
    void operator=(Pack x) const { memcpy(to, &x.v, BYTES); }
};

template <>
struct ptr<Pack> {
    number* base;
    explicit operator bool() const { return base != nullptr; }
    Target operator[](Index i) const {
        if (i.slope != 1) throw GiveUp{W};
        return {base + i.at};
    }
};

template <class T>
struct Argument<ptr<T>> { static ptr<T> get(void* slot) { return {*(decltype(ptr<T>::base)*)slot}; } };
template <>
struct Argument<Index> { static Index get(void* slot) { return *(long long*)slot; } };

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
