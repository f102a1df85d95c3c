// fold: acc[i] = acc[i] OP x[i], the one arithmetic step of every reduction between ranks.
// 16-bit values are folded into an f32 accumulator and rounded once, at the end, by `cast`.
#pragma once
#include <cstddef>
#include "hpcai/half.hpp"

namespace hpcai {

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline std::int32_t widen(std::int32_t x) { return x; }
inline std::int64_t widen(std::int64_t x) { return x; }
inline void narrow(float x, float& out) { out = x; }

// Integers wrap, as in numpy: the addition is done unsigned.
struct Sum {
    static float apply(float a, float b) { return a + b; }
    static double apply(double a, double b) { return a + b; }
    static std::int32_t apply(std::int32_t a, std::int32_t b) { return std::int32_t(std::uint32_t(a) + std::uint32_t(b)); }
    static std::int64_t apply(std::int64_t a, std::int64_t b) { return std::int64_t(std::uint64_t(a) + std::uint64_t(b)); }
};
// A NaN on either side wins, as in numpy.maximum and numpy.minimum.
struct Max { template <class T> static T apply(T a, T b) { return (a > b || a != a) ? a : b; } };
struct Min { template <class T> static T apply(T a, T b) { return (a < b || a != a) ? a : b; } };

template <class Op, class Acc, class X>
inline __attribute__((always_inline)) void fold(Acc* acc, const X* x, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) acc[i] = Op::apply(acc[i], widen(x[i]));
}

template <class Out, class X>
inline __attribute__((always_inline)) void cast(Out* __restrict out, const X* __restrict x, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) narrow(widen(x[i]), out[i]);
}

// out = x + memory in 16 bits; memory = what that leaves out.
template <class Half>
inline __attribute__((always_inline)) void cast_keeping(Half* __restrict out, const float* __restrict x, float* __restrict memory, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const float t = x[i] + memory[i];
        narrow(t, out[i]);
        memory[i] = t - widen(out[i]);
    }
}

// out = or += weight * x.
template <bool kAdd, class Half>
inline __attribute__((always_inline)) void widen_scaled(float* __restrict out, const Half* __restrict x, std::size_t n, float weight) {
    for (std::size_t i = 0; i < n; ++i) out[i] = kAdd ? out[i] + weight * widen(x[i]) : weight * widen(x[i]);
}

// Integers truncate towards zero, as in C and in NCCL's average.
template <class T>
inline __attribute__((always_inline)) void divide(T* x, T divisor, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) x[i] = x[i] / divisor;
}

}  // namespace hpcai
