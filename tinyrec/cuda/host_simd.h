// W neighbouring threads as one pack: the text of a kernel, read with a few vectors where it says `real`.
//
// The host has rewritten `real*` to `ptr<real>` and `long long` to `Index`. An Index is a number that grows by `slope`
// from one lane of the pack to the next: threadIdx.x has slope 1, all that is the same for all threads has slope 0, and
// arithmetic carries it on. So x[i] is a load of W neighbours, or of one number for all. The compiler knows every slope
// in advance; nothing of it is left at run time.
//
// Where the lanes part (a guard that only some of them pass, a row that ends between them, x[2 * c]), the pack gives
// up; host_packs.h and host_warp.h, which launch packs, say what then.
// A condition on numbers must be a select(x < y, a, b), or asked of all lanes, every(x < y): no branch can be taken by
// half of a pack.
// What a text asks beyond this does not compile.

namespace {
namespace host {

#ifdef LANES
const int W = LANES;  // the text waits: a pack is a whole warp
#else
const int W = VECTOR;
#endif
const int PARTS = W / VECTOR;  // vectors of a pack. Each in a register: one wider vector GCC would keep in memory
#define EACH_PART _Pragma("GCC unroll 16") for (int i = 0; i < PARTS; i++)

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

struct Mask { ints v[PARTS]; };

struct Pack {
    vec v[PARTS];
    Pack() = default;
    template <class N, class = std::enable_if_t<std::is_arithmetic<N>::value>>
    Pack(N x) { EACH_PART v[i] = all(number(x)); }
    Pack& operator+=(Pack x) { EACH_PART v[i] += x.v[i]; return *this; }
    Pack& operator-=(Pack x) { EACH_PART v[i] -= x.v[i]; return *this; }
    Pack& operator*=(Pack x) { EACH_PART v[i] *= x.v[i]; return *this; }
    Pack& operator/=(Pack x) { EACH_PART v[i] /= x.v[i]; return *this; }
};

FAST Pack operator-(Pack x) { EACH_PART x.v[i] = -x.v[i]; return x; }
FAST Pack operator+(Pack a, Pack b) { return a += b; }
FAST Pack operator-(Pack a, Pack b) { return a -= b; }
FAST Pack operator*(Pack a, Pack b) { return a *= b; }
FAST Pack operator/(Pack a, Pack b) { return a /= b; }

#define COMPARES(op)                                                                              \
    FAST Mask operator op(Pack a, Pack b) {                                                       \
        Mask c;                                                                                   \
        EACH_PART c.v[i] = a.v[i] op b.v[i];                                                      \
        return c;                                                                                 \
    }                                                                                             \
    inline bool operator op(Index a, Index b) {                                                   \
        return agreed(a, b, [](long long x, long long y) { return x op y; });                     \
    }
COMPARES(<) COMPARES(<=) COMPARES(>) COMPARES(>=) COMPARES(==) COMPARES(!=)

FAST Mask operator&&(Mask a, Mask b) { EACH_PART a.v[i] &= b.v[i]; return a; }
FAST Mask operator||(Mask a, Mask b) { EACH_PART a.v[i] |= b.v[i]; return a; }
FAST Mask operator!(Mask a) { EACH_PART a.v[i] = ~a.v[i]; return a; }

FAST Pack select(Mask where, Pack a, Pack b) { EACH_PART a.v[i] = where.v[i] ? a.v[i] : b.v[i]; return a; }
FAST bool every(Mask here) {
    for (int lane = 0; lane < W; lane++) {
        if (!here.v[lane / VECTOR][lane % VECTOR]) return false;
    }
    return true;
}
FAST Pack exp(Pack x) { EACH_PART x.v[i] = exp_of(x.v[i]); return x; }
FAST Pack expm1(Pack x) { EACH_PART x.v[i] = expm1_of(x.v[i]); return x; }
FAST Pack tanh(Pack x) { EACH_PART x.v[i] = tanh_of(x.v[i]); return x; }
FAST Pack sqrt(Pack x) { EACH_PART x.v[i] = sqrt_of(x.v[i]); return x; }
FAST Pack fabs(Pack x) { EACH_PART x.v[i] = (vec)((ints)x.v[i] & ~(ints)all(number(-0.0))); return x; }
FAST Pack fmax(Pack a, Pack b) { return select(b > a || a != a, b, a); }  // of a NaN and x it is x
FAST Pack fmin(Pack a, Pack b) { return select(b < a || a != a, b, a); }
FAST Pack max(Pack a, Pack b) { return fmax(a, b); }
FAST Pack min(Pack a, Pack b) { return fmin(a, b); }

#define LANE_BY_LANE(name)                                                                          \
    inline Pack name(Pack x) {                                                                      \
        EACH_PART for (int lane = 0; lane < VECTOR; lane++) x.v[i][lane] = ::name(x.v[i][lane]);    \
        return x;                                                                                   \
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
        memcpy(&x.v, base + i.at, sizeof x.v);
        return x;
    }
};

struct Target {  // x[i] on the left of =
    number* to;
    void operator=(Pack x) const { memcpy(to, &x.v, sizeof x.v); }
#ifdef LANES  // host_packs.h runs a thread twice: there nothing can be read that is written
    operator Pack() const { Pack x; return memcpy(&x.v, to, sizeof x.v), x; }
#endif
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

}  // namespace host
}  // namespace
