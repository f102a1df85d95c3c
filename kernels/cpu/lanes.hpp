// Folds and casts in vector registers, for one instruction set: lanes_v3.cpp and lanes_v4.cpp choose it by a pragma, name the
// namespace LANES, and include this file. It includes nothing of the project that has code, so that no function compiled
// for a newer processor is linked into the code for older ones.
//
// fold_ranks keeps a block of the result in registers while it goes through the ranks, so each element is read and written
// once. The processor converts fp16 (F16C); bf16 is a shift one way and integer rounding the other, as in half.hpp. Where
// the order within a block does not matter, the bf16 at even places are one vector and those at odd places the next: a shift
// and a mask take them apart and put them together, and nothing has to cross from lane to lane.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "lanes_table.hpp"

namespace hpcai::cpu::LANES {

#if defined(LANES_512)
using V = __m512;
constexpr std::size_t kWidth = 16;
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
inline V divide(V a, float b) { return _mm512_div_ps(a, _mm512_set1_ps(b)); }
inline V greater(V a, V b) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), b, a); }
inline V less(V a, V b) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), b, a); }

using I = __m512i;
inline I bits_of(V v) { return _mm512_castps_si512(v); }
inline V of_bits(I v) { return _mm512_castsi512_ps(v); }
inline I load_int(const void* x) { return _mm512_loadu_si512(x); }
inline void store_int(void* x, I v) { _mm512_storeu_si512(x, v); }
inline I broadcast(int x) { return _mm512_set1_epi32(x); }
inline I add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
inline I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
inline I shift_left(I a) { return _mm512_slli_epi32(a, 16); }  // by a bf16's bits
inline I shift_right(I a) { return _mm512_srli_epi32(a, 16); }
inline I where_nan(V v, I then, I otherwise) { return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), otherwise, then); }
inline bool any_nan(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) != 0; }

inline V load(const F32Bits* x) { return _mm512_loadu_ps(x); }
inline void store(F32Bits* x, V v) { _mm512_storeu_ps(x, v); }
inline V load(const F16Bits* x) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }
using H = __m256i;  // as many 16-bit elements as V has lanes
inline void store_half(void* x, H h) { _mm256_storeu_si256(static_cast<H*>(x), h); }
inline H to_f16(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline H low_halves(I v) { return _mm512_cvtepi32_epi16(v); }
inline V load(const BF16Bits* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))), 16));
}
#else
using V = __m256;
constexpr std::size_t kWidth = 8;
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, float b) { return _mm256_mul_ps(a, _mm256_set1_ps(b)); }
inline V divide(V a, float b) { return _mm256_div_ps(a, _mm256_set1_ps(b)); }
inline V greater(V a, V b) { return _mm256_blendv_ps(b, a, _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_cmp_ps(a, a, _CMP_UNORD_Q))); }
inline V less(V a, V b) { return _mm256_blendv_ps(b, a, _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), _mm256_cmp_ps(a, a, _CMP_UNORD_Q))); }

using I = __m256i;
inline I bits_of(V v) { return _mm256_castps_si256(v); }
inline V of_bits(I v) { return _mm256_castsi256_ps(v); }
inline I load_int(const void* x) { return _mm256_loadu_si256(static_cast<const I*>(x)); }
inline void store_int(void* x, I v) { _mm256_storeu_si256(static_cast<I*>(x), v); }
inline I broadcast(int x) { return _mm256_set1_epi32(x); }
inline I add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
inline I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
inline I shift_left(I a) { return _mm256_slli_epi32(a, 16); }  // by a bf16's bits
inline I shift_right(I a) { return _mm256_srli_epi32(a, 16); }
inline I where_nan(V v, I then, I otherwise) {
    return _mm256_blendv_epi8(otherwise, then, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
inline bool any_nan(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)) != 0; }

inline V load(const F32Bits* x) { return _mm256_loadu_ps(x); }
inline void store(F32Bits* x, V v) { _mm256_storeu_ps(x, v); }
inline V load(const F16Bits* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
using H = __m128i;  // as many 16-bit elements as V has lanes
inline void store_half(void* x, H h) { _mm_storeu_si128(static_cast<H*>(x), h); }
inline H to_f16(V v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline H low_halves(I v) { return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08)); }
inline V load(const BF16Bits* x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))), 16));
}
#endif

// bf16 in the upper half of each lane: to nearest even, and a NaN stays one.
inline I round_to_upper(V v) { return add(bits_of(v), add(bit_and(shift_right(bits_of(v)), broadcast(1)), broadcast(0x7fff))); }
inline I quiet_upper(V v) { return bit_or(bits_of(v), broadcast(0x400000)); }

inline void store(F16Bits* x, V v) { store_half(x, to_f16(v)); }
inline void store(BF16Bits* x, V v) { store_half(x, low_halves(shift_right(where_nan(v, quiet_upper(v), round_to_upper(v))))); }

struct Sum { static V apply(V a, V b) { return add(a, b); } };
struct Max { static V apply(V a, V b) { return greater(a, b); } };  // a NaN on either side wins
struct Min { static V apply(V a, V b) { return less(a, b); } };

struct Block { V a, b, c, d; };
constexpr std::size_t kBlock = 4 * kWidth;

template <class Op>
inline Block apply(const Block& x, const Block& y) {
    return {Op::apply(x.a, y.a), Op::apply(x.b, y.b), Op::apply(x.c, y.c), Op::apply(x.d, y.d)};
}
inline Block divide(const Block& x, float by) { return {divide(x.a, by), divide(x.b, by), divide(x.c, by), divide(x.d, by)}; }

template <class T>
inline Block load_block(const T* x) {
    return {load(x), load(x + kWidth), load(x + 2 * kWidth), load(x + 3 * kWidth)};
}
inline V even(I pair) { return of_bits(shift_left(pair)); }
inline V odd(I pair) { return of_bits(bit_and(pair, broadcast(int(0xffff0000u)))); }
inline Block load_block(const BF16Bits* x) {
    const I front = load_int(x), back = load_int(x + 2 * kWidth);
    return {even(front), odd(front), even(back), odd(back)};
}

inline void store_block(float* const* outs, int n_outs, std::size_t at, const Block& x) {
    for (int o = 0; o < n_outs; ++o) {
        float* out = outs[o] + at;
        store(out, x.a), store(out + kWidth, x.b), store(out + 2 * kWidth, x.c), store(out + 3 * kWidth, x.d);
    }
}
inline void store_block(F16Bits* const* outs, int n_outs, std::size_t at, const Block& x) {
    const H a = to_f16(x.a), b = to_f16(x.b), c = to_f16(x.c), d = to_f16(x.d);
    for (int o = 0; o < n_outs; ++o) {
        F16Bits* out = outs[o] + at;
        store_half(out, a), store_half(out + kWidth, b), store_half(out + 2 * kWidth, c), store_half(out + 3 * kWidth, d);
    }
}
inline I join(V even, V odd) {
    I low = round_to_upper(even), high = round_to_upper(odd);
    if (__builtin_expect(any_nan(even, odd), 0)) {
        low = where_nan(even, quiet_upper(even), low);
        high = where_nan(odd, quiet_upper(odd), high);
    }
    return bit_or(shift_right(low), bit_and(high, broadcast(int(0xffff0000u))));
}
inline void store_block(BF16Bits* const* outs, int n_outs, std::size_t at, const Block& x) {
    const I front = join(x.a, x.b), back = join(x.c, x.d);
    for (int o = 0; o < n_outs; ++o) {
        store_int(outs[o] + at, front);
        store_int(outs[o] + at + 2 * kWidth, back);
    }
}

template <class Op, class T>
inline void fold_block(T* const* outs, int n_outs, const T* const* xs, int ranks, float divisor, std::size_t at) {
    Block acc = load_block(xs[0] + at);
    for (int r = 1; r < ranks; ++r) acc = apply<Op>(acc, load_block(xs[r] + at));
    if (divisor != 1.0f) acc = divide(acc, divisor);
    store_block(outs, n_outs, at, acc);
}

// The last elements, fewer than a block, in copies that have room for one.
template <class Op, class T>
inline void fold_rest(T* const* outs, int n_outs, const T* const* xs, int ranks, float divisor, std::size_t at, std::size_t n) {
    for (std::size_t i = 0; i < n; i += kWidth) {
        const std::size_t count = n - i < kWidth ? n - i : kWidth;
        T copy[kWidth] = {};
        std::memcpy(copy, xs[0] + at + i, count * sizeof(T));
        V acc = load(copy);
        for (int r = 1; r < ranks; ++r) {
            std::memcpy(copy, xs[r] + at + i, count * sizeof(T));
            acc = Op::apply(acc, load(copy));
        }
        if (divisor != 1.0f) acc = divide(acc, divisor);
        store(copy, acc);
        for (int o = 0; o < n_outs; ++o) std::memcpy(outs[o] + at + i, copy, count * sizeof(T));
    }
}

// The processor's own prefetching stops at each page; ask for what is a page on, but not for what another rank is writing.
template <class T>
inline void prefetch_block(const T* const* xs, int ranks, std::size_t at, std::size_t to) {
    constexpr std::size_t ahead = 4096 / sizeof(T);
    if (at + ahead + kBlock > to) return;
    for (int r = 0; r < ranks; ++r)
        for (std::size_t i = 0; i < kBlock; i += 64 / sizeof(T)) __builtin_prefetch(xs[r] + at + ahead + i);
}

template <class Op, class T>
void fold_ranks(void* const* outs, int n_outs, const void* const* xs, int ranks, long divisor, std::size_t from, std::size_t to) {
    auto* const* out = reinterpret_cast<T* const*>(outs);
    auto* const* x = reinterpret_cast<const T* const*>(xs);
    std::size_t at = from;
    if (ranks == 2 && n_outs == 2) {  // the commonest: the compiler sees the count
        for (; at + kBlock <= to; at += kBlock) {
            prefetch_block(x, 2, at, to);
            fold_block<Op>(out, 2, x, 2, float(divisor), at);
        }
    } else if (ranks == 2 && n_outs == 1) {
        for (; at + kBlock <= to; at += kBlock) {
            prefetch_block(x, 2, at, to);
            fold_block<Op>(out, 1, x, 2, float(divisor), at);
        }
    } else {
        for (; at + kBlock <= to; at += kBlock) {
            prefetch_block(x, ranks, at, to);
            fold_block<Op>(out, n_outs, x, ranks, float(divisor), at);
        }
    }
    fold_rest<Op>(out, n_outs, x, ranks, float(divisor), at, to - at);
}

// acc = acc OP x, acc in f32.
template <class Op, class T>
void fold(void* acc_, const void* x_, std::size_t n) {
    auto* acc = static_cast<F32Bits*>(acc_);
    auto* x = static_cast<const T*>(x_);
    std::size_t at = 0;
    for (; at + kWidth <= n; at += kWidth) store(acc + at, Op::apply(load(acc + at), load(x + at)));
    if (at == n) return;
    F32Bits wide[kWidth] = {};
    T narrow[kWidth] = {};
    std::memcpy(wide, acc + at, (n - at) * sizeof(F32Bits));
    std::memcpy(narrow, x + at, (n - at) * sizeof(T));
    store(wide, Op::apply(load(wide), load(narrow)));
    std::memcpy(acc + at, wide, (n - at) * sizeof(F32Bits));
}

template <class Out, class X>
void cast(void* out_, const void* x_, std::size_t n) {
    auto* out = static_cast<Out*>(out_);
    auto* x = static_cast<const X*>(x_);
    std::size_t at = 0;
    for (; at + kWidth <= n; at += kWidth) {
        _mm_prefetch(out + at + 1024, _MM_HINT_T0);
        store(out + at, load(x + at));
    }
    if (at == n) return;
    Out to[kWidth] = {};
    X from[kWidth] = {};
    std::memcpy(from, x + at, (n - at) * sizeof(X));
    store(to, load(from));
    std::memcpy(out + at, to, (n - at) * sizeof(Out));
}

// out = x + memory as 16-bit values; memory = what that leaves out.
template <class Half>
void keep_vector(Half* out, const float* x, float* memory) {
    const V t = add(load(x), load(memory));
    store(out, t);
    store(memory, sub(t, load(out)));
}
template <class Half>
void cast_keeping(void* out_, const float* x, float* memory, std::size_t n) {
    auto* out = static_cast<Half*>(out_);
    std::size_t at = 0;
    for (; at + kWidth <= n; at += kWidth) {
        _mm_prefetch(x + at + 1024, _MM_HINT_T0);
        _mm_prefetch(memory + at + 1024, _MM_HINT_T0);
        keep_vector(out + at, x + at, memory + at);
    }
    if (at == n) return;
    Half to[kWidth] = {};
    float from[kWidth] = {}, kept[kWidth] = {};
    std::memcpy(from, x + at, (n - at) * sizeof(float));
    std::memcpy(kept, memory + at, (n - at) * sizeof(float));
    keep_vector(to, from, kept);
    std::memcpy(out + at, to, (n - at) * sizeof(Half));
    std::memcpy(memory + at, kept, (n - at) * sizeof(float));
}

// out = or += weight * x.
template <class Half, bool kAdd>
void widen_vector(float* out, const Half* x, float weight) {
    const V value = mul(load(x), weight);
    store(out, kAdd ? add(load(out), value) : value);
}
template <class Half, bool kAdd>
void widen_scaled(float* out, const void* x_, std::size_t n, float weight) {
    auto* x = static_cast<const Half*>(x_);
    std::size_t at = 0;
    for (; at + kWidth <= n; at += kWidth) {
        _mm_prefetch(out + at + 1024, _MM_HINT_T0);
        widen_vector<Half, kAdd>(out + at, x + at, weight);
    }
    if (at == n) return;
    Half from[kWidth] = {};
    float to[kWidth] = {};
    std::memcpy(from, x + at, (n - at) * sizeof(Half));
    std::memcpy(to, out + at, (n - at) * sizeof(float));
    widen_vector<Half, kAdd>(to, from, weight);
    std::memcpy(out + at, to, (n - at) * sizeof(float));
}

#if defined(LANES_512)
// Sixty-four comparisons become the bits of a word.
inline std::uint64_t reaching(const float* x, I least, I magnitude) {
    std::uint64_t reach = 0;
    for (std::size_t k = 0; k < 4 * kWidth; k += kWidth) {
        _mm_prefetch(x + k + 1024, _MM_HINT_T0);
        reach |= std::uint64_t(_mm512_cmpge_epu32_mask(bit_and(_mm512_loadu_si512(x + k), magnitude), least)) << k;
    }
    return reach;
}

// Where the processor can, the places within a word move together without a branch, sixteen of them at most; values are fetched
// when some thousand elements have been looked at, while these are in the cache. Stops where `room` is short; returns `at`.
__attribute__((target("avx512vbmi2,popcnt"))) std::size_t select_stretches(const float* x, std::size_t n, I least, I magnitude,
                                                                          std::size_t room, std::uint32_t* index, float* value,
                                                                          std::size_t& found) {
    constexpr std::size_t kStretch = 2048, kWord = 4 * kWidth;
    std::uint8_t first[64];
    for (int i = 0; i < 64; ++i) first[i] = std::uint8_t(i);
    const I bytes = _mm512_loadu_si512(first);
    std::size_t at = 0;
    while (at + kStretch <= n && found + kStretch <= room) {
        const std::size_t before = found;
        for (const std::size_t end = at + kStretch; at < end; at += kWord) {
            std::uint64_t reach = reaching(x + at, least, magnitude);
            const I places = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(_mm512_maskz_compress_epi8(reach, bytes)));
            store_int(index + found, add(places, broadcast(int(at))));
            const auto count = std::size_t(__builtin_popcountll(reach));
            if (__builtin_expect(count > kWidth, 0))
                for (std::size_t to = found; reach; reach &= reach - 1) index[to++] = std::uint32_t(at) + std::uint32_t(__builtin_ctzll(reach));
            found += count;
        }
        for (std::size_t i = before; i < found; ++i) value[i] = x[index[i]];
    }
    return at;
}

std::size_t select(const float* x, std::size_t n, std::uint32_t threshold, std::size_t room, std::uint32_t* index, float* value) {
    const I least = broadcast(int(threshold)), magnitude = broadcast(0x7fffffff);
    static const bool moves_bytes = __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("popcnt");
    std::size_t found = 0;
    std::size_t at = moves_bytes ? select_stretches(x, n, least, magnitude, room, index, value, found) : 0;
    const auto keep = [&](std::size_t i) {
        if (found < room) index[found] = std::uint32_t(i), value[found] = x[i];
        ++found;
    };
    for (; at + 4 * kWidth <= n; at += 4 * kWidth) {
        for (std::uint64_t reach = reaching(x + at, least, magnitude); reach; reach &= reach - 1)
            keep(at + std::size_t(__builtin_ctzll(reach)));
    }
    for (; at < n; ++at) {
        std::uint32_t bits;
        std::memcpy(&bits, x + at, sizeof bits);
        if ((bits & 0x7fffffffu) >= threshold) keep(at);
    }
    return found;
}
constexpr Select kSelect = select;
#else
constexpr Select kSelect = nullptr;
#endif

extern const Lanes kTable;
const Lanes kTable = {
    {{fold_ranks<Sum, F16Bits>, fold_ranks<Max, F16Bits>, fold_ranks<Min, F16Bits>},
     {fold_ranks<Sum, BF16Bits>, fold_ranks<Max, BF16Bits>, fold_ranks<Min, BF16Bits>},
     {fold_ranks<Sum, F32Bits>, fold_ranks<Max, F32Bits>, fold_ranks<Min, F32Bits>}},
    {{fold<Sum, F16Bits>, fold<Max, F16Bits>, fold<Min, F16Bits>},
     {fold<Sum, BF16Bits>, fold<Max, BF16Bits>, fold<Min, BF16Bits>},
     {fold<Sum, F32Bits>, fold<Max, F32Bits>, fold<Min, F32Bits>}},
    {cast<F32Bits, F16Bits>, cast<F32Bits, BF16Bits>},
    {cast<F16Bits, F32Bits>, cast<BF16Bits, F32Bits>},
    {cast_keeping<F16Bits>, cast_keeping<BF16Bits>},
    {{widen_scaled<F16Bits, false>, widen_scaled<BF16Bits, false>}, {widen_scaled<F16Bits, true>, widen_scaled<BF16Bits, true>}},
    kSelect,
};

}  // namespace hpcai::cpu::LANES
