// Linear layers in bfloat16 by AVX-512, with what follows in the same pass: adapters, a sum, or the
// gate of a GEGLU (Shazeer 2020). Sums stay in float32 until then, and are rounded once. A row's
// numbers depend on no other row, and on no thread.

#include <cmath>

#include "blocks.h"
#include "low_rank.h"

namespace {

constexpr int BLOCK = 16 * ROWS;  // rows at most
constexpr int DEPTH = 1280;       // summed over at once: 160 KiB of a panel, 240 of a block

struct Sizes {
    std::int32_t rows, in, out, threads;
    Shares shares;
};

// x times the normal distribution function (Hendrycks & Gimpel 2016), that by 7.1.26 of Abramowitz &
// Stegun 1964. The reciprocal and the exponential make it exact to about 1e-4, of the function's 1.
inline __m512 gelu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), half = _mm512_set1_ps(0.5f);
    const __m512 log2e = _mm512_set1_ps(-static_cast<float>(M_LOG2E));
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(static_cast<float>(M_SQRT1_2)));
    const __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 tail = _mm512_set1_ps(1.061405429f);
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(-1.453152027f));
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(1.421413741f));
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(-0.284496736f));
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(0.254829592f));
    const __m512 density = exp2(_mm512_mul_ps(_mm512_mul_ps(z, z), log2e));
    tail = _mm512_mul_ps(_mm512_mul_ps(tail, t), _mm512_mul_ps(density, half));
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, ~below, one, tail));
}

// sums (rows, WIDTH) = x (rows, in) times a panel (in / 2, WIDTH, 2).
void panel_sums(const bfloat16* x, int rows, const bfloat16* panel, int in, float* sums) {
    multiply(x, rows, in, panel, std::min(in, DEPTH), sums);
    for (int c = DEPTH; c < in; c += DEPTH) {
        const bfloat16* below = panel + std::size_t(c) * WIDTH;
        multiply<true>(x + c, rows, in, below, std::min(DEPTH, in - c), sums);
    }
}

// Makes the middles of the adapters of a block. sums: room for (rows, WIDTH).
void make_middles(BlockShares& shares, const bfloat16* block, int in, float* sums, Memory& memory) {
    shares.make(in, sums, memory,
                [&](int from, int rows, const bfloat16* panel, int vectors, float* sums) {
                    const bfloat16* x = block + std::size_t(from) * in;
                    add_products(vectors, x, rows, in, panel, in, sums);
                });
}

inline __m512 with_bias(const float* sums, const bfloat16* bias) {
    const __m512 sum = _mm512_loadu_ps(sums);
    return bias ? _mm512_add_ps(sum, load(bias, first(LANES))) : sum;
}

}  // namespace

// x: (rows, in); weight: (out / WIDTH, in / 2, WIDTH, 2); bias: (out,), or null; added: (rows, out),
// or null; result: (rows, out). Returns 0; 1 where memory is lacking.
extern "C" int sdbatch_linear(const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                              const bfloat16* added, bfloat16* result, const Sizes* sizes, float) {
    const Sizes& s = *sizes;
    return in_blocks(s.rows, BLOCK, s.threads, [&](int from, int rows, Memory& memory) {
        BlockShares shares(s.shares, from, rows);
        memory.reset(std::size_t(rows) * WIDTH * sizeof(float) + shares.bytes());
        float* sums = memory.take<float>(std::size_t(rows) * WIDTH);
        const bfloat16* block = x + std::size_t(from) * s.in;
        make_middles(shares, block, s.in, sums, memory);
        for (int column = 0; column < s.out; column += WIDTH) {
            panel_sums(block, rows, weight + std::size_t(column) * s.in, s.in, sums);
            shares.add(column, sums);
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < WIDTH; i += LANES) {
                    const std::size_t at = std::size_t(from + row) * s.out + column + i;
                    __m512 y = with_bias(sums + row * WIDTH + i, bias ? bias + column + i : nullptr);
                    if (added) y = _mm512_add_ps(y, load(added + at, first(LANES)));
                    store(result + at, first(LANES), y);
                }
        }
    });
}

// weight: panels of values and of gates in turns, (out / WIDTH, 2, in / 2, WIDTH, 2); bias:
// (out / WIDTH, 2, WIDTH); result: (rows, out).
extern "C" int sdbatch_geglu(const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                             bfloat16* result, const Sizes* sizes, float) {
    const Sizes& s = *sizes;
    return in_blocks(s.rows, BLOCK, s.threads, [&](int from, int rows, Memory& memory) {
        const std::size_t count = std::size_t(rows) * WIDTH, panel = std::size_t(WIDTH) * s.in;
        BlockShares shares(s.shares, from, rows);
        memory.reset(2 * count * sizeof(float) + shares.bytes());
        float* values = memory.take<float>(count);
        float* gates = memory.take<float>(count);
        const bfloat16* block = x + std::size_t(from) * s.in;
        make_middles(shares, block, s.in, values, memory);
        for (int column = 0; column < s.out; column += WIDTH) {
            const bfloat16* panels = weight + 2 * std::size_t(column) * s.in;
            panel_sums(block, rows, panels, s.in, values);
            panel_sums(block, rows, panels + panel, s.in, gates);
            shares.add(2 * column, values);
            shares.add(2 * column + WIDTH, gates);
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < WIDTH; i += LANES) {
                    const bfloat16* biases = bias + 2 * column + i;
                    const __m512 value = with_bias(values + row * WIDTH + i, biases);
                    const __m512 gate = with_bias(gates + row * WIDTH + i, biases + WIDTH);
                    store(result + std::size_t(from + row) * s.out + column + i, first(LANES),
                          _mm512_mul_ps(value, gelu(gate)));
                }
        }
    });
}
