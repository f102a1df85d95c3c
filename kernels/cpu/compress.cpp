#include "compress.hpp"

#include "hpcai/blocks.hpp"
#include "lanes_table.hpp"
#include "per_cpu.hpp"

namespace hpcai::cpu {
namespace {

// The processor's own prefetching stops at each page, and a lone stream then waits for memory; ask for what is AHEAD elements on.
constexpr std::size_t kAhead = 1024;

template <int kWrite = 0>
inline __attribute__((always_inline)) void prefetch(const float* x, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 16) __builtin_prefetch(x + i, kWrite, 3);
}

// Whole blocks are spelled out with a constant length, so that their loops unroll; the last may be shorter.
#define ENCODE(NAME, FORMAT)                                                                                                    \
    PER_CPU long NAME(const float* x, float* memory, std::size_t n, float* scales, std::uint8_t* packed, Rounding rounding) {  \
        long bad = 0;                                                                                                           \
        for (std::size_t at = 0; at < n; at += kTileElements) {                                                                 \
            float* kept = memory ? memory + at : nullptr;                                                                       \
            std::uint8_t* out = packed + at * FORMAT::kBits / 8;                                                                \
            const auto counter = std::uint32_t(at);                                                                             \
            const bool whole = n - at >= kTileElements;                                                                         \
            prefetch(x + at + kAhead, kTileElements);                                                                           \
            bad += !(whole ? encode_block<FORMAT>(OneLane{}, x + at, kept, kTileElements, scales++, out, rounding, counter)     \
                           : encode_block<FORMAT>(OneLane{}, x + at, kept, int(n - at), scales++, out, rounding, counter));     \
        }                                                                                                                       \
        return bad;                                                                                                             \
    }

#define DECODE(NAME, FORMAT, ADD)                                                                                               \
    PER_CPU void NAME(float* out, std::size_t n, const float* scales, const std::uint8_t* packed, float weight) {              \
        for (std::size_t at = 0; at < n; at += kTileElements) {                                                                 \
            const std::uint8_t* in = packed + at * FORMAT::kBits / 8;                                                           \
            prefetch<1>(out + at + kAhead, kTileElements);                                                                      \
            if (n - at >= kTileElements) decode_block<FORMAT, ADD>(OneLane{}, out + at, kTileElements, *scales++, in, weight);  \
            else decode_block<FORMAT, ADD>(OneLane{}, out + at, int(n - at), *scales++, in, weight);                            \
        }                                                                                                                       \
    }

#define ENCODE_OF(NAME, FORMAT) ENCODE(encode_##FORMAT, FORMAT)
#define DECODE_OF(NAME, FORMAT) DECODE(decode_##FORMAT, FORMAT, false)
#define ADD_OF(NAME, FORMAT) DECODE(add_##FORMAT, FORMAT, true)
HPCAI_FORMATS(ENCODE_OF)
HPCAI_FORMATS(DECODE_OF)
HPCAI_FORMATS(ADD_OF)

// 64 comparisons become the bits of a word, whose set bits are the places: no branch for each element.
PER_CPU std::size_t select(const float* x, std::size_t n, std::uint32_t threshold, std::size_t room, std::uint32_t* index, float* value) {
    std::size_t found = 0, at = 0;
    for (; at + 64 <= n; at += 64) {
        prefetch(x + at + kAhead, 64);
        std::uint8_t reaches[64];
        for (std::size_t i = 0; i < 64; ++i) reaches[i] = std::uint8_t((bits_of(x[at + i]) & 0x7fffffffu) >= threshold);
        std::uint64_t places = 0;
        for (std::size_t k = 0; k < 8; ++k) {
            std::uint64_t eight;
            std::memcpy(&eight, reaches + 8 * k, 8);
            places |= (eight * 0x0102040810204080u >> 56) << (8 * k);
        }
        for (; places; places &= places - 1, ++found) {
            const std::size_t i = at + std::size_t(__builtin_ctzll(places));
            if (found < room) index[found] = std::uint32_t(i), value[found] = x[i];
        }
    }
    for (; at < n; ++at)
        if ((bits_of(x[at]) & 0x7fffffffu) >= threshold) {
            if (found < room) index[found] = std::uint32_t(at), value[found] = x[at];
            ++found;
        }
    return found;
}

PER_CPU void add(float* __restrict memory, const float* __restrict x, std::size_t n) {
    std::size_t at = 0;
    for (; at + kTileElements <= n; at += kTileElements) {
        prefetch(x + at + 2 * kAhead, kTileElements);
        prefetch<1>(memory + at + 2 * kAhead, kTileElements);
        for (std::size_t k = 0; k < kTileElements; ++k) memory[at + k] += x[at + k];
    }
    for (; at < n; ++at) memory[at] += x[at];
}

}  // namespace

#define ENCODER(NAME, FORMAT) encode_##FORMAT,
#define DECODER(NAME, FORMAT) decode_##FORMAT,
#define ADDER(NAME, FORMAT) add_##FORMAT,
using Encode = long (*)(const float*, float*, std::size_t, float*, std::uint8_t*, Rounding);
using Decode = void (*)(float*, std::size_t, const float*, const std::uint8_t*, float);

long encode_blocks(int format, const float* x, float* memory, std::size_t n, float* scales, std::uint8_t* packed, bool stochastic,
                   std::uint32_t key) {
    static const Encode table[] = {HPCAI_FORMATS(ENCODER)};
    if (format < INT8 || format > SIGN) return -1;
    return table[format](x, memory, n, scales, packed, Rounding{stochastic, key});
}

bool decode_blocks(int format, bool add, float* out, std::size_t n, const float* scales, const std::uint8_t* packed, float weight) {
    static const Decode plain[] = {HPCAI_FORMATS(DECODER)};
    static const Decode adding[] = {HPCAI_FORMATS(ADDER)};
    if (format < INT8 || format > SIGN) return false;
    (add ? adding : plain)[format](out, n, scales, packed, weight);
    return true;
}

std::size_t select_above(const float* x, float* memory, std::size_t n, std::uint32_t threshold, std::size_t room, std::uint32_t* index,
                         float* value) {
    const auto chosen = lanes() && lanes()->select ? lanes()->select : select;
    if (!memory) return chosen(x, n, threshold, room, index, value);
    // In parts that stay in the cache between the addition and the selection.
    constexpr std::size_t kPart = 4096;
    std::size_t found = 0;
    for (std::size_t at = 0; at < n; at += kPart) {
        const std::size_t count = n - at < kPart ? n - at : kPart, kept = found < room ? found : room;
        add(memory + at, x + at, count);
        found += chosen(memory + at, count, threshold, room - kept, index + kept, value + kept);
        for (std::size_t i = kept; i < found && i < room; ++i) index[i] += std::uint32_t(at);
    }
    return found;
}

// Places far apart are asked for some time before they are needed.
void scatter(bool adding, float* out, const std::uint32_t* index, const float* value, std::size_t count, float weight) {
    constexpr std::size_t kSoon = 32;
    for (std::size_t i = 0; i < count; ++i) {
        if (i + kSoon < count) __builtin_prefetch(out + index[i + kSoon], 1);
        out[index[i]] = (adding ? out[index[i]] : 0.0f) + (value ? weight * value[i] : 0.0f);
    }
}

}  // namespace hpcai::cpu
