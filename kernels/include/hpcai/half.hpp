// The 16-bit floating-point formats as integers: fp16 (1+5+10 bits) and bf16 (1+8+7 bits), to and from f32.
// Scalar code without branches that matter, so that a compiler vectorises it and a GPU runs it unchanged.
// Rounding is to nearest, ties to even; NaN stays NaN; overflow becomes infinity; subnormal fp16 values are exact.
#pragma once
#include <cstdint>
#include <cstring>

namespace hpcai {

struct fp16 { std::uint16_t bits; };
struct bf16 { std::uint16_t bits; };

inline std::uint32_t bits_of(float value) { std::uint32_t bits; std::memcpy(&bits, &value, 4); return bits; }
inline float float_of(std::uint32_t bits) { float value; std::memcpy(&value, &bits, 4); return value; }

inline float widen(bf16 x) { return float_of(std::uint32_t(x.bits) << 16); }

inline float widen(fp16 x) {
    const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
    const std::uint32_t exponent = magnitude & 0x0f800000u;
    const std::uint32_t normal = magnitude + (112u << 23);           // bias 15 -> 127
    const std::uint32_t special = magnitude + (224u << 23);          // inf and NaN keep an all-ones exponent
    // A subnormal has no implicit one: give it one, then subtract it again.
    const std::uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23));
    const std::uint32_t value = exponent == 0x0f800000u ? special : exponent == 0u ? subnormal : normal;
    return float_of(value | sign);
}

inline void narrow(float value, bf16& out) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t quiet_nan = (bits >> 16) | 0x0040u;
    out.bits = std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

inline void narrow(float value, fp16& out) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Normal: rebias, round to even on the 13 bits that go. A carry out of the mantissa is the next exponent, as it should be.
    const std::uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: adding 0.5 lets the adder shift and round the mantissa into the low bits.
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    out.bits = std::uint16_t((magnitude >= 0x47800000u ? special : finite) | sign);
}

}  // namespace hpcai
