// Row-wise work of a transformer's layers on f32: x is (rows, columns), contiguous.
#pragma once
#include <cstddef>

namespace hpcai::cpu {

// y = gelu(y + bias) in place, and slope = its derivative there.
void bias_gelu(float* y, float* slope, const float* bias, std::size_t rows, std::size_t columns);

// x *= by, and sums = the sums of its columns.
void multiply_and_sum(float* x, const float* by, float* sums, std::size_t rows, std::size_t columns);

// sums = the sums of x's columns.
void column_sums(float* sums, const float* x, std::size_t rows, std::size_t columns);

// top = the largest of each row.
void row_max(float* top, const float* x, std::size_t rows, std::size_t columns);

// out = e**(x - top of the row), and sums = the sums of its rows.
void row_exponentials(float* out, double* sums, const float* x, const float* top, std::size_t rows, std::size_t columns);

// y = (x - mean) * inverse * weight + bias of each row, inverse = 1 / sqrt(variance + epsilon). Without bias (null) the mean is zero:
// RMSNorm.
void layer_norm(float* y, float* mean, float* inverse, const float* x, const float* weight, const float* bias, std::size_t rows,
                std::size_t columns, float epsilon);

void layer_norm_backward(float* dx, const float* dy, const float* x, const float* mean, const float* inverse, const float* weight,
                         bool centred, std::size_t rows, std::size_t columns);

// Sums over rows; dbias may be null.
void layer_norm_gradients(float* dweight, float* dbias, const float* dy, const float* x, const float* mean, const float* inverse,
                          std::size_t rows, std::size_t columns);

}  // namespace hpcai::cpu
