#include "integers.hpp"

#include "hpcai/integers.hpp"
#include "per_cpu.hpp"

namespace hpcai::cpu {
namespace {

constexpr int kBlock = kTileElements;

// A whole block is spelled out with a constant length, so that its loops unroll.
#define EACH_BLOCK(CALL_WHOLE, CALL_LAST)                   \
    std::size_t at = 0, block = 0;                          \
    for (; at + kBlock <= n; at += kBlock, ++block) {       \
        CALL_WHOLE;                                         \
    }                                                       \
    if (at < n) {                                           \
        const int rest = int(n - at);                       \
        CALL_LAST;                                          \
    }

#define LANES(NAME, LANE)                                                                                                         \
    PER_CPU void encode_##NAME(LANE* lanes, const float* scales, float* memory, std::size_t n, int limit) {                       \
        EACH_BLOCK(encode_lanes_block<LANE>(OneLane{}, lanes + at, memory + at, kBlock, scales[block], limit),                    \
                   encode_lanes_block<LANE>(OneLane{}, lanes + at, memory + at, rest, scales[block], limit))                      \
    }                                                                                                                             \
    PER_CPU void decode_##NAME(float* out, const LANE* lanes, const float* scales, std::size_t n, int offset, float factor) {     \
        EACH_BLOCK(decode_lanes_block<LANE>(OneLane{}, out + at, lanes + at, kBlock, scales[block], offset, factor),              \
                   decode_lanes_block<LANE>(OneLane{}, out + at, lanes + at, rest, scales[block], offset, factor))                \
    }
HPCAI_LANE_TYPES(LANES)

PER_CPU void tops_of(float* tops, const float* x, float* memory, std::size_t n) {
    EACH_BLOCK(tops[block] = block_top(OneLane{}, x + at, memory + at, kBlock),
               tops[block] = block_top(OneLane{}, x + at, memory + at, rest))
}

PER_CPU void add(std::int64_t* sums, const float* x, std::size_t n, double per_unit) { hpcai::add_fixed(sums, x, n, per_unit); }
PER_CPU void from(float* out, const std::int64_t* sums, std::size_t n, double unit) { hpcai::from_fixed(out, sums, n, unit); }

}  // namespace

void block_tops(float* tops, const float* x, float* memory, std::size_t n) { tops_of(tops, x, memory, n); }

void encode_lanes(int lane_bytes, void* lanes, const float* scales, float* memory, std::size_t n, int limit) {
#define ENCODE(NAME, LANE) if (lane_bytes == sizeof(LANE)) encode_##NAME(static_cast<LANE*>(lanes), scales, memory, n, limit);
    HPCAI_LANE_TYPES(ENCODE)
}

void decode_lanes(int lane_bytes, float* out, const void* lanes, const float* scales, std::size_t n, int offset, float factor) {
#define DECODE(NAME, LANE) if (lane_bytes == sizeof(LANE)) decode_##NAME(out, static_cast<const LANE*>(lanes), scales, n, offset, factor);
    HPCAI_LANE_TYPES(DECODE)
}

void add_fixed(std::int64_t* sums, const float* x, std::size_t n, double per_unit) { add(sums, x, n, per_unit); }
void from_fixed(float* out, const std::int64_t* sums, std::size_t n, double unit) { from(out, sums, n, unit); }

}  // namespace hpcai::cpu
