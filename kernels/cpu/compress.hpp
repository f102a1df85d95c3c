// Entry points of the codecs: formats as small integers, memory as pointers.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tables.hpp"

namespace hpcai::cpu {

// With the types of blocks.hpp.
#define HPCAI_FORMATS(EACH) EACH(INT8, Int8) EACH(INT4, Int4) EACH(FP8, Fp8) EACH(SIGN, Sign)
enum Format : int { HPCAI_FORMATS(HPCAI_MEMBER) };

// x (n) into one scale and 256 levels a block; with a memory see blocks.hpp. Returns how many blocks were not finite, -1 if the
// format is unknown.
long encode_blocks(int format, const float* x, float* memory, std::size_t n, float* scales, std::uint8_t* packed, bool stochastic,
                   std::uint32_t key);
// out = or += weight * decoded. False: unknown format.
bool decode_blocks(int format, bool add, float* out, std::size_t n, const float* scales, const std::uint8_t* packed, float weight);

// The elements with magnitude of at least `threshold` (its bits), at most `room` of them, in order; returns how many there are.
// With a memory: memory += x, and the elements of that.
std::size_t select_above(const float* x, float* memory, std::size_t n, std::uint32_t threshold, std::size_t room,
                         std::uint32_t* index, float* value);

// out[index] = or += weight * value, or 0 where there are no values.
void scatter(bool adding, float* out, const std::uint32_t* index, const float* value, std::size_t count, float weight);

}  // namespace hpcai::cpu
