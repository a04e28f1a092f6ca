// exp, expm1, tanh and sqrt of a whole vector, for host_simd.h.
//
// With n the whole number next to x / ln 2 and r = x - n ln 2, so |r| <= ln 2 / 2 = 0.3466,
//
//     e^x = 2^n e^r,   e^r - 1 = r + r^2 (1/2! + r/3! + r^2/4! + ...)                                              (1)
//
// - n. Adding 1.5 * 2^23 (double: 1.5 * 2^52) leaves no bits for a fraction: the sum is rounded to a whole number. It
//   stands in the lowest bits as an integer, and as a floating-point number once the same is subtracted again.
// - r. ln 2 is split in two: n HIGH has no rounding, as HIGH ends in zeros (9 digits of 24, 33 of 53), and LOW is the
//   rest. Otherwise the error of n ln 2, up to n / 2 of its last digits, would become a relative error of e^x.
// - The series ends where the first term left out is far below half a digit, 2^-24 and 2^-53 of e^r:
//   0.3466^8 / 8! = 5e-9 against 6e-8, and 0.3466^14 / 14! = 4e-18 against 1e-16.
// - 2^n is an exponent without a fraction. It is applied in two halves, since 2^128 and 2^-149 are no normal numbers.
// - expm1 is 2^n (e^r - 1) + (2^n - 1), for n = 0 the series itself: all digits near 0, where e^x - 1 would lose them.
// - tanh |x| is -e / (2 + e) with e = expm1(-2 |x|), which cannot overflow; the sign is that of x.
//
// Tests hold them to 2 units in the last place, and tanh, which has a quotient more, to 3. AVX-512 has limits
// that keep a NaN, and 2^n x, in one instruction each.

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {
namespace host {

using number = real;  // float or double
const bool SINGLE = sizeof(number) == 4;
using whole = std::conditional_t<SINGLE, int, long long>;

#if defined(__AVX512F__)
const int BYTES = 64;
#elif defined(__AVX__)
const int BYTES = 32;
#else
const int BYTES = 16;
#endif
const int VECTOR = BYTES / int(sizeof(number));  // its lanes

typedef number vec __attribute__((vector_size(BYTES)));
typedef whole ints __attribute__((vector_size(BYTES)));

#define FAST static inline __attribute__((always_inline))

FAST vec all(number x) { return x - vec{}; }

const number LOG2E = number(1.4426950408889634074);
const number HIGH = SINGLE ? number(0.693359375) : number(0.693147180369123816490);
const number LOW = SINGLE ? number(-2.12194440e-4) : number(1.90821492927058770002e-10);
const number ROUNDS = SINGLE ? number(12582912) : number(6755399441055744);  // 1.5 * 2^23, 1.5 * 2^52
const int DIGITS = SINGLE ? 23 : 52, ONE = SINGLE ? 127 : 1023;              // of the fraction; exponent of 1.0
const number LEAST = SINGLE ? -104 : -746, MOST = SINGLE ? 89 : 710;         // beyond: 0 and infinity

FAST vec within(vec x) {  // a NaN stays a NaN
#ifdef __AVX512F__
    if (SINGLE) return (vec)_mm512_min_ps((__m512)all(MOST), _mm512_max_ps((__m512)all(LEAST), (__m512)x));
    return (vec)_mm512_min_pd((__m512d)all(MOST), _mm512_max_pd((__m512d)all(LEAST), (__m512d)x));
#else
    x = x < LEAST ? all(LEAST) : x;
    return x > MOST ? all(MOST) : x;
#endif
}

struct Reduced { vec n; ints whole_n; vec series; };  // n twice, and e^r - 1

FAST Reduced reduce(vec x) {
    x = within(x);
    const vec shifted = x * LOG2E + ROUNDS, n = shifted - ROUNDS, r = (x - n * HIGH) - n * LOW;
    vec sum = all(number(SINGLE ? 1.0 / 5040 : 1.0 / 6227020800));  // 1/7!, 1/13!
    if (!SINGLE) {
        for (double of : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0}) {
            sum = sum * r + number(1 / of);
        }
    }
    for (double of : {720.0, 120.0, 24.0, 6.0, 2.0}) sum = sum * r + number(1 / of);
    return {n, (ints)shifted - (ints)all(ROUNDS), r * r * sum + r};
}

FAST vec power_of_two(ints n) { return (vec)((n + ONE) << DIGITS); }

FAST vec exp_of(vec x) {
    const Reduced e = reduce(x);
#ifdef __AVX512F__
    if (SINGLE) return (vec)_mm512_scalef_ps((__m512)(1 + e.series), (__m512)e.n);
    return (vec)_mm512_scalef_pd((__m512d)(1 + e.series), (__m512d)e.n);
#else
    const ints half = e.whole_n >> 1;
    return (1 + e.series) * power_of_two(half) * power_of_two(e.whole_n - half);
#endif
}

FAST vec expm1_of(vec x) {
    const Reduced e = reduce(x);
    const ints half = e.whole_n >> 1, rest = e.whole_n - half;
    const vec first = power_of_two(half);
    return (e.series * first + (first - power_of_two(-rest))) * power_of_two(rest);
}

FAST vec tanh_of(vec x) {
    const ints sign = (ints)x & (ints)all(number(-0.0));
    const vec e = expm1_of(-2 * (vec)((ints)x ^ sign));
    return (vec)((ints)(-e / (2 + e)) | sign);
}

FAST vec sqrt_of(vec x) {
    number lanes[VECTOR];
    memcpy(lanes, &x, BYTES);
    for (number& y : lanes) y = ::sqrt(y);
    memcpy(&x, lanes, BYTES);
    return x;
}

}  // namespace host
}  // namespace
