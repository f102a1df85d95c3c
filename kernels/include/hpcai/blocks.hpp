// Codecs with one scale for each block of 256 elements: int8, int4, fp8 and sign. A block is a tile.
//
// With a memory (error feedback) the block's values are x + memory, and what the levels do not say goes back into the memory:
// x and memory are read once, levels and memory written once. Values that are not finite decode to NaN: int8 and int4 keep
// their lowest level for that, fp8 has a code; sign, which has no level to spare, makes the block's scale NaN.
#pragma once
#include <cmath>
#include <cstring>

#include "hpcai/context.hpp"
#include "hpcai/counter.hpp"
#include "hpcai/fp8.hpp"

namespace hpcai {

#define HPCAI_TILE inline __attribute__((always_inline))

constexpr std::uint32_t kInfinity = 0x7f800000u;
constexpr float kSmallestScale = 0x1p-126f;  // below it a block counts as zero, and all of it stays in the memory

struct Rounding {
    bool stochastic;
    std::uint32_t key;
};

// Whole levels from -kTop to kTop; kNone stands for NaN.
template <int kTop>
struct Whole {
    static constexpr int kNone = -kTop - 1;
    static constexpr float kLargest = kTop;

    HPCAI_TILE static void levels(std::int8_t* level, const float* t, int n, float inverse, Rounding rounding, std::uint32_t counter) {
        if (rounding.stochastic) {
            for (int j = 0; j < n; ++j) {
                const float y = std::floor(t[j] * inverse + random_unit(rounding.key, counter + std::uint32_t(j)));
                level[j] = std::int8_t(y > kTop ? kTop : y < -kTop ? -kTop : y);
            }
        } else {
            for (int j = 0; j < n; ++j) level[j] = std::int8_t(std::nearbyint(t[j] * inverse));
        }
    }
    HPCAI_TILE static float value(std::int8_t level) { return level == kNone ? float_of(0x7fc00000u) : float(level); }
};

struct Int8 : Whole<127> {
    static constexpr int kBits = 8;
    HPCAI_TILE static void pack(std::uint8_t* out, const std::int8_t* level, int n) { std::memcpy(out, level, std::size_t(n)); }
    HPCAI_TILE static void unpack(std::int8_t* level, const std::uint8_t* in, int n) { std::memcpy(level, in, std::size_t(n)); }
};

struct Int4 : Whole<7> {
    static constexpr int kBits = 4;
    HPCAI_TILE static void pack(std::uint8_t* out, const std::int8_t* level, int n) {
        for (int j = 0; j < n / 2; ++j) out[j] = std::uint8_t((level[2 * j] & 15) | (level[2 * j + 1] & 15) << 4);
        if (n % 2) out[n / 2] = std::uint8_t(level[n - 1] & 15);
    }
    HPCAI_TILE static void unpack(std::int8_t* level, const std::uint8_t* in, int n) {
        for (int j = 0; j < n / 2; ++j) {
            level[2 * j] = std::int8_t(std::int8_t(in[j] << 4) >> 4);
            level[2 * j + 1] = std::int8_t(std::int8_t(in[j]) >> 4);
        }
        if (n % 2) level[n - 1] = std::int8_t(std::int8_t(in[n / 2] << 4) >> 4);
    }
};

struct Fp8 {
    static constexpr int kBits = 8, kNone = 0x7f;
    static constexpr float kLargest = 448.0f;

    HPCAI_TILE static void levels(std::int8_t* level, const float* t, int n, float inverse, Rounding rounding, std::uint32_t counter) {
        if (rounding.stochastic) {
            for (int j = 0; j < n; ++j)
                level[j] = std::int8_t(narrow_fp8_stochastic(t[j] * inverse, random_bits(rounding.key, counter + std::uint32_t(j))));
        } else {
            for (int j = 0; j < n; ++j) level[j] = std::int8_t(narrow_fp8(t[j] * inverse));
        }
    }
    HPCAI_TILE static float value(std::int8_t level) { return widen_fp8(std::uint8_t(level)); }
    HPCAI_TILE static void pack(std::uint8_t* out, const std::int8_t* level, int n) { std::memcpy(out, level, std::size_t(n)); }
    HPCAI_TILE static void unpack(std::int8_t* level, const std::uint8_t* in, int n) { std::memcpy(level, in, std::size_t(n)); }
};

// +1 and -1 in a bit each, with the mean magnitude as scale. Source: Seide et al., Interspeech 2014; Bernstein et al.,
// arXiv:1802.04434.
struct Sign {
    static constexpr int kBits = 1;
    HPCAI_TILE static void levels(std::int8_t* level, const float* t, int n, float, Rounding, std::uint32_t) {
        for (int j = 0; j < n; ++j) level[j] = std::int8_t(1 - 2 * int(bits_of(t[j]) >> 31));
    }
    HPCAI_TILE static float value(std::int8_t level) { return float(level); }
    HPCAI_TILE static void pack(std::uint8_t* out, const std::int8_t* level, int n) {
        for (int k = 0; 8 * k < n; ++k) {
            std::uint64_t eight = 0;
            std::memcpy(&eight, level + 8 * k, std::size_t(n - 8 * k < 8 ? n - 8 * k : 8));
            out[k] = std::uint8_t(((eight >> 7 & 0x0101010101010101u) * 0x0102040810204080u) >> 56);  // gathers the sign bits
        }
    }
    HPCAI_TILE static void unpack(std::int8_t* level, const std::uint8_t* in, int n) {
        constexpr std::uint64_t ones = 0x0101010101010101u;
        for (int k = 0; 8 * k < n; ++k) {  // bit b of a byte to byte b of eight, then 0, 1 to +1, -1
            const std::uint64_t bit = (in[k] * ones) & 0x8040201008040201u;
            const std::uint64_t eight = ((bit + 0x7f * ones) >> 7 & ones) * 0xfe + ones;
            std::memcpy(level + 8 * k, &eight, std::size_t(n - 8 * k < 8 ? n - 8 * k : 8));
        }
    }
};

// The sum of magnitudes / 256, which cannot overflow, in sixteen parts, so that it has one order whatever the vectors' width.
HPCAI_TILE float magnitude_sum(const float* t, int n) {
    float part[16] = {};
    for (int j = 0; j + 16 <= n; j += 16)
        for (int k = 0; k < 16; ++k) part[k] += std::fabs(t[j + k]) * 0x1p-8f;
    for (int k = 0; k < n % 16; ++k) part[k] += std::fabs(t[n - n % 16 + k]) * 0x1p-8f;
    for (int half = 8; half; half /= 2)
        for (int k = 0; k < half; ++k) part[k] += part[k + half];
    return part[0];
}

template <class Format>
HPCAI_TILE float scale_of(std::uint32_t top, const float*, int) { return float_of(top) / Format::kLargest; }
template <>
HPCAI_TILE float scale_of<Sign>(std::uint32_t, const float* t, int n) { return magnitude_sum(t, n) / (float(n) * 0x1p-8f); }

// One block of n <= 256 elements. `counter` is the index of its first element. False: it holds a value that is not finite.
template <class Format, class Context>
HPCAI_TILE bool encode_block(Context context, const float* x, float* memory, int n, float* scale, std::uint8_t* packed,
                             Rounding rounding, std::uint32_t counter) {
    constexpr int m = Context::kPerLane;
    float t[m];
    std::int8_t level[m];
    const int at = context.first(), mine = n - at < m ? (n - at > 0 ? n - at : 0) : m;
    std::uint32_t top = 0;
    if (memory)
        for (int j = 0; j < mine; ++j) t[j] = x[at + j] + memory[at + j];
    else
        for (int j = 0; j < mine; ++j) t[j] = x[at + j];
    for (int j = 0; j < mine; ++j) {
        const std::uint32_t magnitude = bits_of(t[j]) & 0x7fffffffu;
        top = magnitude > top ? magnitude : top;
    }
    top = context.max(top);
    const bool finite = top < kInfinity;
    if (__builtin_expect(!finite, 0)) {  // scale by what is finite
        top = 0;
        for (int j = 0; j < mine; ++j) {
            const std::uint32_t magnitude = bits_of(t[j]) & 0x7fffffffu;
            if (magnitude < kInfinity && magnitude > top) top = magnitude;
        }
        top = context.max(top);
    }
    float s = scale_of<Format>(top, t, mine);
    if (s < kSmallestScale) s = 0.0f;
    const float inverse = s > 0.0f ? 1.0f / s : 0.0f;
    Format::levels(level, t, mine, inverse, rounding, counter + std::uint32_t(at));
    if constexpr (Format::kBits > 1) {
        if (__builtin_expect(!finite, 0))
            for (int j = 0; j < mine; ++j)
                if ((bits_of(t[j]) & 0x7fffffffu) >= kInfinity) level[j] = std::int8_t(Format::kNone);
    } else if (!finite) {
        s = float_of(0x7fc00000u);
    }
    if (memory)
        for (int j = 0; j < mine; ++j) memory[at + j] = t[j] - s * Format::value(level[j]);
    Format::pack(packed + at * Format::kBits / 8, level, mine);
    if (context.leads()) *scale = s;
    return finite;
}

// out = or += weight * decoded.
template <class Format, bool kAdd, class Context>
HPCAI_TILE void decode_block(Context context, float* out, int n, float scale, const std::uint8_t* packed, float weight) {
    constexpr int m = Context::kPerLane;
    std::int8_t level[m];
    const int at = context.first(), mine = n - at < m ? (n - at > 0 ? n - at : 0) : m;
    Format::unpack(level, packed + at * Format::kBits / 8, mine);
    for (int j = 0; j < mine; ++j) {
        const float value = weight * (scale * Format::value(level[j]));
        out[at + j] = kAdd ? out[at + j] + value : value;
    }
}

}  // namespace hpcai
