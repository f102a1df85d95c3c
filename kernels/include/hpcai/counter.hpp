// Random bits as a function of a counter, so that any lane computes any of them in any order (Salmon et al., SC 2011,
// doi:10.1145/2063384.2063405): the 32-bit mixer of Wellons, https://nullprogram.com/blog/2018/07/31/, with a key.
#pragma once
#include <cstdint>

namespace hpcai {

inline std::uint32_t random_bits(std::uint32_t key, std::uint32_t counter) {
    std::uint32_t x = counter ^ key;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

// In [0, 1).
inline float random_unit(std::uint32_t key, std::uint32_t counter) { return float(random_bits(key, counter) >> 8) * 0x1p-24f; }

}  // namespace hpcai
