// Entry points of the CPU kernels: element types and operations as small integers, memory as pointers.
#pragma once
#include <cstddef>

#include "tables.hpp"

namespace hpcai::cpu {

#define HPCAI_TYPES(EACH) EACH(F16) EACH(BF16) EACH(F32) EACH(F64) EACH(I32) EACH(I64) EACH(BYTES)
#define HPCAI_OPS(EACH) EACH(SUM) EACH(MAX) EACH(MIN)
enum Type : int { HPCAI_TYPES(HPCAI_MEMBER) };
enum Op : int { HPCAI_OPS(HPCAI_MEMBER) };

// acc OP= x. acc has the type of x, or f32 where x has 16 bits. False: no such combination.
bool fold(Type type, Op op, void* acc, const void* x, std::size_t n);
// out = x, rounded to nearest even: between f32 and a 16-bit type.
bool cast(Type to, Type from, void* out, const void* x, std::size_t n);
// out = x + memory as 16-bit values, and the memory is what they leave out; out = or += weight * x of 16 bits.
bool cast_keeping(Type to, void* out, const float* x, float* memory, std::size_t n);
bool widen_scaled(Type from, bool add, float* out, const void* x, std::size_t n, float weight);
// x /= divisor, for the mean.
bool divide(Type type, void* x, long divisor, std::size_t n);

// outs[o][i] = xs[0][i] OP xs[1][i] OP ..., / divisor, for from <= i < to. 16-bit values go through f32.
bool fold_ranks(Type type, Op op, void* const* outs, int n_outs, const void* const* xs, int ranks, long divisor, std::size_t from,
                std::size_t to);

// Which vector kernels are in use, in words.
const char* lanes_name();

}  // namespace hpcai::cpu
