// Entry points of sums of integers; see kernels/include/hpcai/integers.hpp.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tables.hpp"

namespace hpcai::cpu {

// Types of lanes, which are told apart by their bytes.
#define HPCAI_LANE_TYPES(EACH) EACH(u8, std::uint8_t) EACH(u16, std::uint16_t)

// Scales for each block of 256 elements.
void block_tops(float* tops, const float* x, float* memory, std::size_t n);
void encode_lanes(int lane_bytes, void* lanes, const float* scales, float* memory, std::size_t n, int limit);
void decode_lanes(int lane_bytes, float* out, const void* lanes, const float* scales, std::size_t n, int offset, float factor);

void add_fixed(std::int64_t* sums, const float* x, std::size_t n, double per_unit);
void from_fixed(float* out, const std::int64_t* sums, std::size_t n, double unit);

}  // namespace hpcai::cpu
