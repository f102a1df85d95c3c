// fp8-e4m3 (1+4+3 bits, bias 7, largest 448, no infinities, NaN 0x7f) to and from f32, as integers, like half.hpp.
// Source: Micikevicius et al., arXiv:2209.05433.
#pragma once
#include "hpcai/half.hpp"

namespace hpcai {

inline float widen_fp8(std::uint32_t code) {
    const std::uint32_t magnitude = code & 0x7fu;
    const std::uint32_t normal = (magnitude << 20) + (120u << 23);  // bias 7 -> 127
    // A subnormal has no implicit one: give it one, then subtract it again.
    const std::uint32_t subnormal = bits_of(float_of((magnitude << 20) + (121u << 23)) - float_of(121u << 23));
    const std::uint32_t value = magnitude == 0x7fu ? 0x7fc00000u : magnitude < 8u ? subnormal : normal;
    return float_of(value | (code & 0x80u) << 24);
}

// To nearest, ties to even; what is beyond 448 becomes 448.
inline std::uint32_t narrow_fp8(float value) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    const std::uint32_t normal = (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
    // Below 2^-6: adding 2^14 lets the adder shift and round the mantissa into the low bits.
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 16384.0f) - bits_of(16384.0f);
    const std::uint32_t finite = magnitude < (121u << 23) ? subnormal : normal;
    const std::uint32_t limited = finite > 0x7eu ? 0x7eu : finite;
    return (magnitude > 0x7f800000u ? 0x7fu : limited) | ((bits >> 24) & 0x80u);
}

// Up or down at random, so that the expected value is exact: random bits below the mantissa's last, and the rest cut off.
inline std::uint32_t narrow_fp8_stochastic(float value, std::uint32_t random) {
    const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    const std::uint32_t normal = (magnitude - (120u << 23) + (random >> 12)) >> 20;
    const std::uint32_t subnormal = std::uint32_t(float_of(magnitude) * 512.0f + float(random >> 8) * 0x1p-24f);  // steps of 2^-9
    const std::uint32_t finite = magnitude < (121u << 23) ? subnormal : normal;
    const std::uint32_t limited = finite > 0x7eu ? 0x7eu : finite;
    return (magnitude > 0x7f800000u ? 0x7fu : limited) | ((bits >> 24) & 0x80u);
}

}  // namespace hpcai
