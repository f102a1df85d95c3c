#include "fold.hpp"
#include "hpcai/fold.hpp"
#include "hpcai/fold_ranks.hpp"
#include "lanes_table.hpp"
#include "per_cpu.hpp"

#include <cstdlib>
#include <cstring>

namespace hpcai::cpu {
namespace {

#define FOLD(NAME, OP, ACC, X) \
    PER_CPU void NAME(void* acc, const void* x, std::size_t n) { hpcai::fold<OP>(static_cast<ACC*>(acc), static_cast<const X*>(x), n); }
#define FOLDS(NAME, ACC, X) FOLD(NAME##_sum, Sum, ACC, X) FOLD(NAME##_max, Max, ACC, X) FOLD(NAME##_min, Min, ACC, X)
FOLDS(f16, float, fp16)
FOLDS(bf16_, float, bf16)
FOLDS(f32, float, float)
FOLDS(f64, double, double)
FOLDS(i32, std::int32_t, std::int32_t)
FOLDS(i64, std::int64_t, std::int64_t)

#define CAST(NAME, OUT, X) \
    PER_CPU void NAME(void* out, const void* x, std::size_t n) { hpcai::cast(static_cast<OUT*>(out), static_cast<const X*>(x), n); }
CAST(f32_from_f16, float, fp16)
CAST(f32_from_bf16, float, bf16)
CAST(f16_from_f32, fp16, float)
CAST(bf16_from_f32, bf16, float)

#define HALF(NAME, T)                                                                                             \
    PER_CPU void NAME##_keep(void* out, const float* x, float* memory, std::size_t n) {                           \
        hpcai::cast_keeping(static_cast<T*>(out), x, memory, n);                                                  \
    }                                                                                                             \
    PER_CPU void NAME##_put(float* out, const void* x, std::size_t n, float weight) {                             \
        hpcai::widen_scaled<false>(out, static_cast<const T*>(x), n, weight);                                     \
    }                                                                                                             \
    PER_CPU void NAME##_add(float* out, const void* x, std::size_t n, float weight) {                             \
        hpcai::widen_scaled<true>(out, static_cast<const T*>(x), n, weight);                                      \
    }
HALF(f16, fp16)
HALF(bf16_, bf16)

#define DIVIDE(NAME, T) \
    PER_CPU void NAME(void* x, long divisor, std::size_t n) { hpcai::divide(static_cast<T*>(x), static_cast<T>(divisor), n); }
DIVIDE(f32_divide, float)
DIVIDE(f64_divide, double)
DIVIDE(i32_divide, std::int32_t)
DIVIDE(i64_divide, std::int64_t)

#define RANKS(NAME, OP, ACC, X)                                                                                             \
    PER_CPU void NAME(void* const* outs, int n_outs, const void* const* xs, int ranks, long divisor, std::size_t a, std::size_t b) { \
        hpcai::fold_ranks<OP, ACC, X>(reinterpret_cast<X* const*>(outs), n_outs, reinterpret_cast<const X* const*>(xs), ranks, \
                                      static_cast<ACC>(divisor), a, b);                                                      \
    }
#define ALL_RANKS(NAME, ACC, X) RANKS(NAME##_sum_ranks, Sum, ACC, X) RANKS(NAME##_max_ranks, Max, ACC, X) RANKS(NAME##_min_ranks, Min, ACC, X)
ALL_RANKS(f16, float, fp16)
ALL_RANKS(bf16_, float, bf16)
ALL_RANKS(f32, float, float)
ALL_RANKS(f64, double, double)
ALL_RANKS(i32, std::int32_t, std::int32_t)
ALL_RANKS(i64, std::int64_t, std::int64_t)

}  // namespace

const Lanes* lanes() {
#if defined(HPCAI_LANES)
    static const Lanes* chosen = []() -> const Lanes* {
        const char* asked = std::getenv(kLanesVariable);
        if (asked && std::strcmp(asked, kLanesNone) == 0) return nullptr;
        const bool old = asked && std::strcmp(asked, kLanesV3) == 0;
        if (!old && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            return &v4::kTable;
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? &v3::kTable : nullptr;
    }();
    return chosen;
#else
    return nullptr;
#endif
}

const char* lanes_name() {
#if defined(HPCAI_LANES)
    if (lanes() == &v4::kTable) return "AVX-512";
    if (lanes() == &v3::kTable) return "AVX2, F16C";
#endif
    return "scalar, as the compiler vectorises it";
}

bool fold(Type type, Op op, void* acc, const void* x, std::size_t n) {
    static const Fold table[6][3] = {
        {f16_sum, f16_max, f16_min}, {bf16__sum, bf16__max, bf16__min}, {f32_sum, f32_max, f32_min},
        {f64_sum, f64_max, f64_min}, {i32_sum, i32_max, i32_min},       {i64_sum, i64_max, i64_min}};
    if (type < F16 || type > I64 || op < SUM || op > MIN) return false;
    (type <= F32 && lanes() ? lanes()->fold : table)[type][op](acc, x, n);
    return true;
}

bool fold_ranks(Type type, Op op, void* const* outs, int n_outs, const void* const* xs, int ranks, long divisor, std::size_t from,
                std::size_t to) {
    static const FoldRanks table[6][3] = {
        {f16_sum_ranks, f16_max_ranks, f16_min_ranks}, {bf16__sum_ranks, bf16__max_ranks, bf16__min_ranks},
        {f32_sum_ranks, f32_max_ranks, f32_min_ranks}, {f64_sum_ranks, f64_max_ranks, f64_min_ranks},
        {i32_sum_ranks, i32_max_ranks, i32_min_ranks}, {i64_sum_ranks, i64_max_ranks, i64_min_ranks}};
    if (type < F16 || type > I64 || op < SUM || op > MIN) return false;
    (type <= F32 && lanes() ? lanes()->fold_ranks : table)[type][op](outs, n_outs, xs, ranks, divisor, from, to);
    return true;
}

bool cast(Type to, Type from, void* out, const void* x, std::size_t n) {
    static const Fold widen[2] = {f32_from_f16, f32_from_bf16}, narrow[2] = {f16_from_f32, bf16_from_f32};
    if (to == F32 && from <= BF16) (lanes() ? lanes()->widen : widen)[from](out, x, n);
    else if (from == F32 && to <= BF16) (lanes() ? lanes()->narrow : narrow)[to](out, x, n);
    else return false;
    return true;
}

bool cast_keeping(Type to, void* out, const float* x, float* memory, std::size_t n) {
    static const Keep plain[2] = {f16_keep, bf16__keep};
    if (to > BF16) return false;
    (lanes() ? lanes()->keep : plain)[to](out, x, memory, n);
    return true;
}

bool widen_scaled(Type from, bool add, float* out, const void* x, std::size_t n, float weight) {
    static const Scaled plain[2][2] = {{f16_put, bf16__put}, {f16_add, bf16__add}};
    if (from > BF16) return false;
    (lanes() ? lanes()->scaled : plain)[add][from](out, x, n, weight);
    return true;
}

bool divide(Type type, void* x, long divisor, std::size_t n) {
    if (type == F32) f32_divide(x, divisor, n);
    else if (type == F64) f64_divide(x, divisor, n);
    else if (type == I32) i32_divide(x, divisor, n);
    else if (type == I64) i64_divide(x, divisor, n);
    else return false;
    return true;
}

}  // namespace hpcai::cpu
