// Products of bfloat16 matrices by AVX-512, as convolutions and linear layers make them.
#pragma once

#include <cstring>

#include "vectors.h"

constexpr int VECTORS = 4;              // of columns, summed together
constexpr int WIDTH = VECTORS * LANES;  // columns of a panel
constexpr int ROWS = 6;                 // together: 24 sums and 5 factors fit in 32 registers

using Pair = std::int32_t;  // two bfloat16, neighbours in a row, or one below the other in a column

// sums (R, 16 · V) = x (R, depth), rows `step` apart, times a panel (depth / 2, 16 · V, 2). MORE:
// added to what is there.
template <int R, bool MORE, int V>
void multiply_rows(const bfloat16* x, std::size_t step, const bfloat16* panel, int depth,
                   float* sums) {
    __m512 sum[R][V] = {};
    if constexpr (MORE)
        for (int r = 0; r < R; r++)
            for (int i = 0; i < V; i++)
                sum[r][i] = _mm512_loadu_ps(sums + (r * V + i) * LANES);
    for (int c = 0; c < depth; c += 2, panel += 2 * V * LANES) {
        __m512bh factor[V];
        for (int i = 0; i < V; i++) {
            const __m512i pairs = _mm512_loadu_si512(panel + i * 2 * LANES);
            factor[i] = reinterpret_cast<const __m512bh&>(pairs);
        }
        for (int r = 0; r < R; r++) {
            Pair pair;
            std::memcpy(&pair, x + r * step + c, sizeof(pair));
            const __m512i pairs = _mm512_set1_epi32(pair);
            for (int i = 0; i < V; i++)
                sum[r][i] = _mm512_dpbf16_ps(
                    sum[r][i], reinterpret_cast<const __m512bh&>(pairs), factor[i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < V; i++)
            _mm512_storeu_ps(sums + (r * V + i) * LANES, sum[r][i]);
}

// The same of any number of rows. A row's sums do not depend on it.
template <bool MORE = false, int V = VECTORS>
void multiply(const bfloat16* x, int rows, std::size_t step, const bfloat16* panel, int depth,
              float* sums) {
    for (; rows >= ROWS; rows -= ROWS, x += ROWS * step, sums += ROWS * V * LANES)
        multiply_rows<ROWS, MORE, V>(x, step, panel, depth, sums);
    switch (rows) {
        case 5: return multiply_rows<5, MORE, V>(x, step, panel, depth, sums);
        case 4: return multiply_rows<4, MORE, V>(x, step, panel, depth, sums);
        case 3: return multiply_rows<3, MORE, V>(x, step, panel, depth, sums);
        case 2: return multiply_rows<2, MORE, V>(x, step, panel, depth, sums);
        case 1: return multiply_rows<1, MORE, V>(x, step, panel, depth, sums);
    }
}
