// Who works on a tile: one CPU lane that does all of it, or the 32 lanes of a GPU warp that share it. A tile routine is written
// once, against this interface: lane l owns the kPerLane elements from first() on, and max() and sum() combine over the lanes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hpcai {

constexpr int kTileElements = 256;

struct OneLane {
    static constexpr int kPerLane = kTileElements;
    static constexpr int first() { return 0; }
    static constexpr bool leads() { return true; }
    static std::uint32_t max(std::uint32_t mine) { return mine; }
    static float sum(float mine) { return mine; }
};

}  // namespace hpcai
