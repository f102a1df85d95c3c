// Attention by tiles: all products of a head run on packed copies that lie in the first caches. Probabilities are computed again
// in backward from the kept norms of their rows. Source: Dao et al., arXiv:2205.14135 (the idea; a head's keys fit a CPU's cache,
// so rows are whole here and need no running maximum).
//
// Names: t rows (queries or keys), d width of a head; padded to kRows and kLane with zeros. S scores, P probabilities, dP their
// gradient, dS the scores'.
#include "attention.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "vector.hpp"

namespace hpcai::cpu {
namespace {

constexpr std::size_t kRows = 8, kBlock = 64;  // rows of a tile, queries that share scratch

// C (kRows x 16 * COLUMNS) = or += A B: k products. A's element (r, i) is a[r * row + i * step]; rows of B and C are contiguous.
template <int COLUMNS>
INLINE void tile(float* c, std::size_t ldc, const float* a, std::size_t row, std::size_t step, const float* b, std::size_t ldb,
                 std::size_t k, bool add) {
    V sum[kRows][COLUMNS];
    for (std::size_t r = 0; r < kRows; ++r)
        for (int j = 0; j < COLUMNS; ++j) sum[r][j] = add ? load(c + r * ldc + j * kLane) : V{};
    for (std::size_t i = 0; i < k; ++i) {
        V right[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) right[j] = load(b + i * ldb + j * kLane);
        for (std::size_t r = 0; r < kRows; ++r) {
            const float left = a[r * row + i * step];
            for (int j = 0; j < COLUMNS; ++j) sum[r][j] += left * right[j];
        }
    }
    for (std::size_t r = 0; r < kRows; ++r)
        for (int j = 0; j < COLUMNS; ++j) store(c + r * ldc + j * kLane, sum[r][j]);
}

// The same for any number of columns that is a multiple of a vector.
INLINE void product(float* c, std::size_t ldc, const float* a, std::size_t row, std::size_t step, const float* b, std::size_t ldb,
                    std::size_t k, std::size_t columns, bool add = false) {
    std::size_t j = 0;
    for (; j + 2 * kLane <= columns; j += 2 * kLane) tile<2>(c + j, ldc, a, row, step, b + j, ldb, k, add);
    if (j < columns) tile<1>(c + j, ldc, a, row, step, b + j, ldb, k, add);
}

// Rows of a strided matrix as padded rows, or as columns.
INLINE void pack_rows(float* out, std::size_t ld, const float* x, std::size_t stride, std::size_t t, std::size_t d) {
    for (std::size_t i = 0; i < t; ++i) std::memcpy(out + i * ld, x + i * stride, d * sizeof(float));
}
// Squares of a vector's length are transposed in registers: rows 8, then 4, 2, 1 apart exchange halves of their lanes' blocks.
template <int APART>
INLINE void exchange(V* rows) {
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const I low = (lane & APART) == 0 ? lane : lane - APART + int(kLane), high = (lane & APART) == 0 ? lane + APART : lane + int(kLane);
    for (std::size_t i = 0; i < kLane; ++i)
        if (!(i & APART)) {
            const V a = rows[i], b = rows[i + APART];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i + APART] = __builtin_shuffle(a, b, high);
        }
}
INLINE void pack_columns(float* out, std::size_t ld, const float* x, std::size_t stride, std::size_t t, std::size_t d) {
    const std::size_t square_rows = t / kLane * kLane, square_columns = d / kLane * kLane;
    for (std::size_t i = 0; i < square_rows; i += kLane)
        for (std::size_t k = 0; k < square_columns; k += kLane) {
            V rows[kLane];
            for (std::size_t r = 0; r < kLane; ++r) rows[r] = load(x + (i + r) * stride + k);
            exchange<8>(rows);
            exchange<4>(rows);
            exchange<2>(rows);
            exchange<1>(rows);
            for (std::size_t r = 0; r < kLane; ++r) store(out + (k + r) * ld + i, rows[r]);
        }
    for (std::size_t i = 0; i < t; ++i)
        for (std::size_t k = i < square_rows ? square_columns : 0; k < d; ++k) out[k * ld + i] = x[i * stride + k];
}

// What query i sees of the keys in the vector that begins at `first`: `seen`, and `hidden` in the other lanes.
INLINE V causal(V seen, V hidden, std::size_t first, std::size_t i) {
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane <= std::int32_t(i) - std::int32_t(first) ? seen : hidden;
}

// Memory that one call uses, zeroed: the padding stays zero, since only true rows and columns are packed.
struct Scratch {
    std::vector<float> memory;
    std::size_t used = 0;
    explicit Scratch(std::size_t n) : memory(n + kLane) {}
    float* take(std::size_t n) {
        float* found = memory.data() + used;
        used += n;
        return found;
    }
};

}  // namespace

PER_CPU void attention(float* y, float* norms, const float* x, std::size_t sequences, std::size_t context, std::size_t heads,
                       std::size_t width, float scale) {
    const std::size_t t = round_up(context, kRows), tl = round_up(context, kLane) + kLane, d = round_up(width, kLane);
    const std::size_t stride = 3 * heads * width, out = heads * width;
    Scratch scratch(t * d + width * tl + tl * d + kRows * tl + kRows * d);
    float* q = scratch.take(t * d);
    float* kt = scratch.take(width * tl);
    float* v = scratch.take(tl * d);
    float* s = scratch.take(kRows * tl);
    float* o = scratch.take(kRows * d);
    float sums[kRows];
    for (std::size_t head = 0; head < sequences * heads; ++head) {
        const std::size_t b = head / heads, h = head % heads;
        const float* xq = x + b * context * stride + h * width;
        pack_rows(q, d, xq, stride, context, width);
        pack_columns(kt, tl, xq + out, stride, context, width);
        pack_rows(v, d, xq + 2 * out, stride, context, width);
        for (std::size_t i0 = 0; i0 < context; i0 += kRows) {
            const std::size_t keys = i0 + kRows < context ? i0 + kRows : context, columns = round_up(keys, kLane);
            product(s, tl, q + i0 * d, d, 1, kt, tl, width, columns);
            for (std::size_t r = 0; r < kRows && i0 + r < context; ++r) {
                float* row = s + r * tl;
                const std::size_t last = columns - kLane;  // a tile's queries all end in one vector of keys
                V top = causal(load(row + last), broadcast(-std::numeric_limits<float>::infinity()), last, i0 + r);
                for (std::size_t j = 0; j < last; j += kLane) {
                    const V here = load(row + j);
                    top = here > top ? here : top;
                }
                const float most = largest_of(top) * scale;
                V total = {};
                for (std::size_t j = 0; j < last; j += kLane) {
                    const V p = exponential(load(row + j) * scale - most);
                    store(row + j, p);
                    total += p;
                }
                const V p = causal(exponential(load(row + last) * scale - most), V{}, last, i0 + r);
                store(row + last, p);
                sums[r] = sum_of(total + p);
                norms[head * context + i0 + r] = most + std::log(sums[r]);
            }
            product(o, d, s, tl, 1, v, d, keys, d);
            for (std::size_t r = 0; r < kRows && i0 + r < context; ++r) {
                const float factor = 1.0f / sums[r];
                float* to = y + (b * context + i0 + r) * out + h * width;
                along(width, [&](std::size_t c, auto, auto put) INLINED { put(to + c, load(o + r * d + c) * factor); });
            }
        }
    }
}

PER_CPU void attention_backward(float* dx, const float* dy, const float* y, const float* norms, const float* x,
                                std::size_t sequences, std::size_t context, std::size_t heads, std::size_t width, float scale) {
    const std::size_t t = round_up(context, kRows), tl = round_up(context, kLane) + kLane, d = round_up(width, kLane);
    const std::size_t stride = 3 * heads * width, out = heads * width;
    Scratch scratch(6 * tl * d + 2 * d * tl + 2 * kBlock * tl + kRows * d);
    float* q = scratch.take(tl * d);
    float* k = scratch.take(tl * d);
    float* kt = scratch.take(d * tl);
    float* vt = scratch.take(d * tl);
    float* go = scratch.take(tl * d);
    float* dk = scratch.take(tl * d);
    float* dv = scratch.take(tl * d);
    float* p = scratch.take(kBlock * tl);
    float* ds = scratch.take(kBlock * tl);
    float* dq = scratch.take(kRows * d);
    for (std::size_t head = 0; head < sequences * heads; ++head) {
        const std::size_t b = head / heads, h = head % heads;
        const float* xq = x + b * context * stride + h * width;
        const float* gy = dy + b * context * out + h * width;
        const float* yy = y + b * context * out + h * width;
        float* gx = dx + b * context * stride + h * width;
        pack_rows(q, d, xq, stride, context, width);
        pack_rows(k, d, xq + out, stride, context, width);
        pack_columns(kt, tl, xq + out, stride, context, width);
        pack_columns(vt, tl, xq + 2 * out, stride, context, width);
        pack_rows(go, d, gy, out, context, width);
        std::memset(dk, 0, tl * d * sizeof(float));
        std::memset(dv, 0, tl * d * sizeof(float));
        for (std::size_t begin = 0; begin < context; begin += kBlock) {
            const std::size_t end = begin + kBlock < t ? begin + kBlock : t;
            for (std::size_t i0 = begin; i0 < end; i0 += kRows) {
                const std::size_t keys = i0 + kRows < context ? i0 + kRows : context, columns = round_up(keys, kLane);
                float* pr = p + (i0 - begin) * tl;
                float* dr = ds + (i0 - begin) * tl;
                product(pr, tl, q + i0 * d, d, 1, kt, tl, width, columns);
                product(dr, tl, go + i0 * d, d, 1, vt, tl, width, columns);
                for (std::size_t r = 0; r < kRows; ++r, pr += tl, dr += tl) {
                    const std::size_t i = i0 + r;
                    if (i >= context) {
                        std::memset(pr, 0, columns * sizeof(float));
                        std::memset(dr, 0, columns * sizeof(float));
                        continue;
                    }
                    V dots = {};
                    along(width, [&](std::size_t c, auto get, auto) INLINED { dots += get(gy + i * out + c) * get(yy + i * out + c); });
                    const V norm = broadcast(norms[head * context + i]), taken = broadcast(sum_of(dots));
                    for (std::size_t j = 0; j < columns; j += kLane) {
                        V likely = exponential(load(pr + j) * scale - norm);
                        if (j + kLane == columns) likely = causal(likely, V{}, j, i);
                        store(pr + j, likely);
                        store(dr + j, likely * (load(dr + j) - taken) * scale);
                    }
                }
                product(dq, d, ds + (i0 - begin) * tl, tl, 1, k, d, keys, d);
                for (std::size_t r = 0; r < kRows && i0 + r < context; ++r)
                    std::memcpy(gx + (i0 + r) * stride, dq + r * d, width * sizeof(float));
            }
            // Queries before a tile of keys do not see it; rows of the block that begin within it are zero where they do not.
            for (std::size_t j0 = 0; j0 < end; j0 += kRows) {
                const std::size_t from = j0 > begin ? j0 : begin, rows = end - from;
                product(dk + j0 * d, d, ds + (from - begin) * tl + j0, 1, tl, q + from * d, d, rows, d, true);
                product(dv + j0 * d, d, p + (from - begin) * tl + j0, 1, tl, go + from * d, d, rows, d, true);
            }
        }
        for (std::size_t i = 0; i < context; ++i) {
            std::memcpy(gx + i * stride + out, dk + i * d, width * sizeof(float));
            std::memcpy(gx + i * stride + 2 * out, dv + i * d, width * sizeof(float));
        }
    }
}

}  // namespace hpcai::cpu
