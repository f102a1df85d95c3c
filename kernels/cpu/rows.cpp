// Row-wise work: each row is read once from memory, and once or twice more from the first cache.
#include "rows.hpp"

#include <cmath>

#include "vector.hpp"

namespace hpcai::cpu {
namespace {

// Phi(x) and phi(x) of the standard normal distribution: Abramowitz & Stegun 26.2.17, absolute error 7.5e-8.
INLINE void normal_distribution(V x, V& phi, V& density) {
    const V e = exponential(-0.5f * x * x), positive = x < V{} ? -x : x;
    const V t = 1.0f / (1.0f + 0.2316419f * positive);
    const V tail = e * t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f))));
    phi = x < V{} ? tail : 1.0f - tail;
    density = e * 0.3989422804f;
}

}  // namespace

PER_CPU void bias_gelu(float* y, float* slope, const float* bias, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i, y += columns, slope += columns)
        along(columns, [&](std::size_t j, auto get, auto put) INLINED {
            const V x = get(y + j) + get(bias + j);
            V phi, density;
            normal_distribution(x, phi, density);
            put(y + j, x * phi);
            put(slope + j, phi + x * density);
        });
}

PER_CPU void multiply_and_sum(float* x, const float* by, float* sums, std::size_t rows, std::size_t columns) {
    constexpr std::size_t kTogether = 8;  // rows whose products are added before the sums are touched
    std::memset(sums, 0, columns * sizeof(float));
    for (std::size_t i = 0; i < rows; i += kTogether, x += kTogether * columns, by += kTogether * columns) {
        const std::size_t here = rows - i < kTogether ? rows - i : kTogether;
        along(columns, [&](std::size_t j, auto get, auto put) INLINED {
            V sum = get(sums + j);
            for (std::size_t r = 0; r < here; ++r) {
                const V product = get(x + r * columns + j) * get(by + r * columns + j);
                put(x + r * columns + j, product);
                sum += product;
            }
            put(sums + j, sum);
        });
    }
}

PER_CPU void column_sums(float* sums, const float* x, std::size_t rows, std::size_t columns) {
    constexpr std::size_t kTogether = 8;
    std::memset(sums, 0, columns * sizeof(float));
    for (std::size_t i = 0; i < rows; i += kTogether, x += kTogether * columns) {
        const std::size_t here = rows - i < kTogether ? rows - i : kTogether;
        along(columns, [&](std::size_t j, auto get, auto put) INLINED {
            V sum = get(sums + j);
            for (std::size_t r = 0; r < here; ++r) sum += get(x + r * columns + j);
            put(sums + j, sum);
        });
    }
}

PER_CPU void row_max(float* top, const float* x, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i, x += columns) {
        V most = broadcast(x[0]);
        std::size_t j = 0;
        for (; j + kLane <= columns; j += kLane) most = load(x + j) > most ? load(x + j) : most;
        float found = largest_of(most);
        for (; j < columns; ++j) found = x[j] > found ? x[j] : found;
        top[i] = found;
    }
}

PER_CPU void row_exponentials(float* out, double* sums, const float* x, const float* top, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i, x += columns, out += columns) {
        V total = {};
        std::size_t j = 0;
        for (; j + kLane <= columns; j += kLane) {
            const V e = exponential(load(x + j) - top[i]);
            store(out + j, e);
            total += e;
        }
        float sum = sum_of(total);
        if (const std::size_t rest = columns - j) {
            store_part(out + j, exponential(load_part(x + j, rest) - top[i]), rest);
            for (; j < columns; ++j) sum += out[j];
        }
        sums[i] = sum;
    }
}

PER_CPU void layer_norm(float* y, float* mean, float* inverse, const float* x, const float* weight, const float* bias,
                        std::size_t rows, std::size_t columns, float epsilon) {
    for (std::size_t i = 0; i < rows; ++i, y += columns, x += columns) {
        float middle = 0;
        if (bias) {
            V total = {};
            along(columns, [&](std::size_t j, auto get, auto) INLINED { total += get(x + j); });
            middle = sum_of(total) / float(columns);
        }
        V squares = {};
        for (std::size_t j = 0; j + kLane <= columns; j += kLane) {
            const V apart = load(x + j) - middle;
            squares += apart * apart;
        }
        float square = sum_of(squares);
        for (std::size_t j = columns / kLane * kLane; j < columns; ++j) square += (x[j] - middle) * (x[j] - middle);
        const float factor = 1.0f / std::sqrt(square / float(columns) + epsilon);
        mean[i] = middle;
        inverse[i] = factor;
        along(columns, [&](std::size_t j, auto get, auto put) INLINED {
            const V normal = (get(x + j) - middle) * factor;
            put(y + j, bias ? normal * get(weight + j) + get(bias + j) : normal * get(weight + j));
        });
    }
}

PER_CPU void layer_norm_backward(float* dx, const float* dy, const float* x, const float* mean, const float* inverse,
                                 const float* weight, bool centred, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i, dx += columns, dy += columns, x += columns) {
        const float middle = mean[i], factor = inverse[i];
        V sums = {}, dots = {};
        along(columns, [&](std::size_t j, auto get, auto) INLINED {
            const V slope = get(dy + j) * get(weight + j);
            sums += slope;
            dots += slope * (get(x + j) - middle);
        });
        const float shift = centred ? sum_of(sums) / float(columns) : 0.0f, along_normal = sum_of(dots) * factor / float(columns);
        along(columns, [&](std::size_t j, auto get, auto put) INLINED {
            const V normal = (get(x + j) - middle) * factor;
            put(dx + j, (get(dy + j) * get(weight + j) - shift - normal * along_normal) * factor);
        });
    }
}

PER_CPU void layer_norm_gradients(float* dweight, float* dbias, const float* dy, const float* x, const float* mean,
                                  const float* inverse, std::size_t rows, std::size_t columns) {
    constexpr std::size_t kTogether = 8;
    std::memset(dweight, 0, columns * sizeof(float));
    if (dbias) std::memset(dbias, 0, columns * sizeof(float));
    for (std::size_t i = 0; i < rows; i += kTogether, dy += kTogether * columns, x += kTogether * columns) {
        const std::size_t here = rows - i < kTogether ? rows - i : kTogether;
        along(columns, [&](std::size_t j, auto get, auto put) INLINED {
            V weights = get(dweight + j), biases = {};
            for (std::size_t r = 0; r < here; ++r) {
                const V slope = get(dy + r * columns + j);
                weights += slope * ((get(x + r * columns + j) - mean[i + r]) * inverse[i + r]);
                biases += slope;
            }
            put(dweight + j, weights);
            if (dbias) put(dbias + j, get(dbias + j) + biases);
        });
    }
}

}  // namespace hpcai::cpu
