// fold_ranks: one element range of P arrays reduced in rank order and written to one or all of them.
// out[i] = (((x0[i] OP x1[i]) OP x2[i]) ...) [/ divisor]. The order is the ranks', whatever the range, so that results do not
// depend on who reduces what. 16-bit values are accumulated in f32 and rounded once.
#pragma once
#include <cstddef>
#include "hpcai/fold.hpp"

namespace hpcai {

inline void narrow(double x, double& out) { out = x; }
inline void narrow(std::int32_t x, std::int32_t& out) { out = x; }
inline void narrow(std::int64_t x, std::int64_t& out) { out = x; }

constexpr std::size_t kTile = 2048;  // elements of the accumulator that stay in the first-level cache

// Two ranks, the commonest and the fastest: no accumulator in memory. outs may be the same arrays as xs.
template <class Op, class Acc, class X>
inline __attribute__((always_inline)) void fold_two(X* out0, X* out1, const X* a, const X* b, Acc divisor, std::size_t n) {
    if (divisor == Acc(1)) {
#pragma GCC ivdep
        for (std::size_t i = 0; i < n; ++i) {
            X result;
            narrow(Op::apply(Acc(widen(a[i])), Acc(widen(b[i]))), result);
            out0[i] = result;
            out1[i] = result;
        }
    } else {
#pragma GCC ivdep
        for (std::size_t i = 0; i < n; ++i) {
            X result;
            narrow(Op::apply(Acc(widen(a[i])), Acc(widen(b[i]))) / divisor, result);
            out0[i] = result;
            out1[i] = result;
        }
    }
}

template <class Op, class Acc, class X>
inline __attribute__((always_inline)) void fold_ranks(X* const* outs, int n_outs, const X* const* xs, int ranks, Acc divisor,
                                                      std::size_t from, std::size_t to) {
    if (ranks == 2) {
        X* second = n_outs == 2 ? outs[1] : outs[0];
        fold_two<Op, Acc, X>(outs[0] + from, second + from, xs[0] + from, xs[1] + from, divisor, to - from);
        return;
    }
    Acc acc[kTile];
    for (std::size_t at = from; at < to; at += kTile) {
        const std::size_t n = to - at < kTile ? to - at : kTile;
        const X* first = xs[0] + at;
        for (std::size_t i = 0; i < n; ++i) acc[i] = widen(first[i]);
        for (int r = 1; r < ranks; ++r) {
            const X* x = xs[r] + at;
            for (std::size_t i = 0; i < n; ++i) acc[i] = Op::apply(acc[i], Acc(widen(x[i])));
        }
        if (divisor != Acc(1))
            for (std::size_t i = 0; i < n; ++i) acc[i] = acc[i] / divisor;
        for (int o = 0; o < n_outs; ++o) {
            X* out = outs[o] + at;
            for (std::size_t i = 0; i < n; ++i) narrow(acc[i], out[i]);
        }
    }
}

}  // namespace hpcai
