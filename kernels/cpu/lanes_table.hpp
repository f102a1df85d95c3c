// What a set of vector kernels offers (lanes.hpp), and which of them this processor can run.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hpcai::cpu {

using FoldRanks = void (*)(void* const*, int, const void* const*, int, long, std::size_t, std::size_t);
using Fold = void (*)(void*, const void*, std::size_t);
using Keep = void (*)(void*, const float*, float*, std::size_t);
using Scaled = void (*)(float*, const void*, std::size_t, float);
using Select = std::size_t (*)(const float*, std::size_t, std::uint32_t, std::size_t, std::uint32_t*, float*);

// Elements as they lie in memory; distinct types, so that loads and stores are chosen by them.
using F32Bits = float;
struct F16Bits { std::uint16_t bits; };
struct BF16Bits { std::uint16_t bits; };

struct Lanes {
    FoldRanks fold_ranks[3][3];  // [F16, BF16, F32][SUM, MAX, MIN]
    Fold fold[3][3];
    Fold widen[2], narrow[2];    // [F16, BF16]: f32 from it, it from f32
    Keep keep[2];                // [F16, BF16]: as cast_keeping of fold.hpp
    Scaled scaled[2][2];         // [written, added][F16, BF16]: as widen_scaled of fold.hpp
    Select select;               // as select_above of compress.hpp, or null
};

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define HPCAI_LANES 1
namespace v3 { extern const Lanes kTable; }  // AVX2 and F16C
namespace v4 { extern const Lanes kTable; }  // AVX-512
#endif

// The variable that asks for older ones, to test them, and what it may be.
constexpr char kLanesVariable[] = "HPCAI_LANES", kLanesV3[] = "v3", kLanesNone[] = "none";

// Those in use: the newest that this processor can run, or null.
const Lanes* lanes();

}  // namespace hpcai::cpu
