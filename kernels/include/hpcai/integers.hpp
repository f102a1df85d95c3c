// Sums of integers, which are exact in any order. Two ways to make integers of f32 values:
//
// lanes: small levels on scales that all ranks share, stored as level + limit, so that they are never negative and the sum over
// the ranks fits the lane: P * 2 * limit is below 256 (u8) or 65536 (u16). Sums of neighbours in one i32 then never carry from
// one lane into the next, so a sum of i32 adds four lanes at once.
//
// fixed point: x in units of a power of two, as i64, which holds many sums without a rounding.
#pragma once
#include <cmath>
#include <cstdint>

#include "hpcai/blocks.hpp"

namespace hpcai {

// memory += x; returns the largest magnitude of the block, NaN if something in it is not finite.
template <class Context>
HPCAI_TILE float block_top(Context context, const float* x, float* memory, int n) {
    constexpr int m = Context::kPerLane;
    const int at = context.first(), mine = n - at < m ? (n - at > 0 ? n - at : 0) : m;
    std::uint32_t top = 0;
    for (int j = 0; j < mine; ++j) {
        const float t = x[at + j] + memory[at + j];
        memory[at + j] = t;
        const std::uint32_t magnitude = bits_of(t) & 0x7fffffffu;
        top = magnitude > top ? magnitude : top;
    }
    top = context.max(top);
    return float_of(top < kInfinity ? top : 0x7fc00000u);
}

// The block in `memory` becomes lanes; what they do not say stays. A scale that is NaN makes the memory NaN.
template <class Lane, class Context>
HPCAI_TILE void encode_lanes_block(Context context, Lane* lanes, float* memory, int n, float scale, int limit) {
    constexpr int m = Context::kPerLane;
    const int at = context.first(), mine = n - at < m ? (n - at > 0 ? n - at : 0) : m;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f, most = float(limit);
    for (int j = 0; j < mine; ++j) {
        const float y = std::nearbyint(memory[at + j] * inverse);
        const float level = y > -most ? (y < most ? y : most) : -most;
        lanes[at + j] = Lane(int(level) + limit);
        memory[at + j] -= scale * level;
    }
}

// out = factor * scale * (sum - offset).
template <class Lane, class Context>
HPCAI_TILE void decode_lanes_block(Context context, float* out, const Lane* lanes, int n, float scale, int offset, float factor) {
    constexpr int m = Context::kPerLane;
    const int at = context.first(), mine = n - at < m ? (n - at > 0 ? n - at : 0) : m;
    const float unit = scale * factor;
    for (int j = 0; j < mine; ++j) out[at + j] = unit * float(int(lanes[at + j]) - offset);
}

// sums += x in units of 1 / per_unit, rounded to nearest even. |x| * per_unit must be below 2^62.
HPCAI_TILE void add_fixed(std::int64_t* sums, const float* x, std::size_t n, double per_unit) {
    for (std::size_t i = 0; i < n; ++i) sums[i] += std::int64_t(std::nearbyint(double(x[i]) * per_unit));
}

// out = sums in f32, rounded to 53 bits and then to 24.
HPCAI_TILE void from_fixed(float* out, const std::int64_t* sums, std::size_t n, double unit) {
    for (std::size_t i = 0; i < n; ++i) out[i] = float(double(sums[i]) * unit);
}

}  // namespace hpcai
