// Vectors of 16 floats in the compiler's own notation: one register on AVX-512, two or four on older processors, plain loops
// elsewhere. For functions that are PER_CPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "per_cpu.hpp"

#define INLINED __attribute__((always_inline))
#define INLINE INLINED inline

namespace hpcai::cpu {
namespace {

constexpr std::size_t kLane = 16;

typedef float V __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::int32_t I __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint32_t U __attribute__((vector_size(64), aligned(4), may_alias));

INLINE V load(const float* x) { return *reinterpret_cast<const V*>(x); }
INLINE void store(float* x, V v) { *reinterpret_cast<V*>(x) = v; }
INLINE V broadcast(float x) { return x - V{}; }
INLINE std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

// The last columns of a row, where there are fewer than a vector: the rest is zero, and is not written.
INLINE V load_part(const float* x, std::size_t n) {
    float part[kLane] = {};
    std::memcpy(part, x, n * sizeof(float));
    return load(part);
}
INLINE void store_part(float* x, V v, std::size_t n) {
    float part[kLane];
    store(part, v);
    std::memcpy(x, part, n * sizeof(float));
}

// A row of n floats as vectors: each(load or load_part, store or store_part, place).
template <typename Each>
INLINE void along(std::size_t n, Each each) {
    std::size_t j = 0;
    for (; j + kLane <= n; j += kLane) each(j, [](const float* x) INLINED { return load(x); }, [](float* x, V v) INLINED { store(x, v); });
    if (const std::size_t rest = n - j)
        each(j, [rest](const float* x) INLINED { return load_part(x, rest); }, [rest](float* x, V v) INLINED { store_part(x, v, rest); });
}

// e**x, x <= 88: 2**n e**r as in hpcai/ops/sequence.py; n is rounded by adding a number whose last place counts ones.
INLINE V exponential(V x) {
    const V low = broadcast(-87.0f), magic = broadcast(12582912.0f);
    x = x < low ? low : x;
    const V shifted = x * 1.44269504f + magic, n = shifted - magic;
    const V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    V p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return reinterpret_cast<V>(reinterpret_cast<U>(p) + (reinterpret_cast<U>(shifted) << 23));  // unsigned: of a NaN it may wrap
}

// A vector folded to a float by halves.
typedef float Half __attribute__((vector_size(32), aligned(4), may_alias));
typedef float Quarter __attribute__((vector_size(16), aligned(4), may_alias));

template <typename Fold>
INLINE float fold_lanes(V v, Fold fold) {
    const float* x = reinterpret_cast<const float*>(&v);
    const Half half = fold(*reinterpret_cast<const Half*>(x), *reinterpret_cast<const Half*>(x + 8));
    const float* y = reinterpret_cast<const float*>(&half);
    const Quarter quarter = fold(*reinterpret_cast<const Quarter*>(y), *reinterpret_cast<const Quarter*>(y + 4));
    return fold(fold(quarter[0], quarter[1]), fold(quarter[2], quarter[3]));
}
INLINE float sum_of(V v) { return fold_lanes(v, [](auto a, auto b) INLINED { return a + b; }); }
INLINE float largest_of(V v) { return fold_lanes(v, [](auto a, auto b) INLINED { return a > b ? a : b; }); }

}  // namespace
}  // namespace hpcai::cpu
