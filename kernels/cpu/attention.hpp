// Causal self-attention of f32, one head of one sequence at a time, without ever writing the matrix of probabilities to memory.
#pragma once
#include <cstddef>

namespace hpcai::cpu {

// Sequences of `context` rows one behind the other: x (sequences * context, 3 * heads * width) holds queries, keys and values;
// y (.., heads * width) gets the outputs, norms (sequences, heads, context) the logarithms of the rows' sums of exponentials.
void attention(float* y, float* norms, const float* x, std::size_t sequences, std::size_t context, std::size_t heads,
               std::size_t width, float scale);

// dx (like x) from dy, and from what the forward pass read and wrote.
void attention_backward(float* dx, const float* dy, const float* y, const float* norms, const float* x, std::size_t sequences,
                        std::size_t context, std::size_t heads, std::size_t width, float scale);

}  // namespace hpcai::cpu
