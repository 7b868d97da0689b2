// Layer norm in bfloat16 (Ba et al. 2016). A row stays in the first-level cache from its sums to its
// results, and depends on no other.

#include <cmath>

#include "vectors.h"

namespace {

struct Sizes {
    std::int32_t rows, width, threads;
};

constexpr int AT_ONCE = 4 * LANES;  // numbers whose sums are apart, for one sum would wait for itself

// For every vector of a row: its number among four, where it begins, its lanes. WHOLE: the row has
// no broken vector.
template <bool WHOLE, typename Step>
void each(int width, Step step) {
    for (int from = 0; from < width; from += AT_ONCE)
        for (int i = 0; i < 4; i++) {
            const int at = from + i * LANES;
            step(i, at, WHOLE ? __mmask16(-1) : first(width - at));
        }
}

float added_up(const __m512* sums) {
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

template <bool WHOLE>
void norm(const bfloat16* x, const bfloat16* weight, const bfloat16* bias, bfloat16* out, int width,
          float eps) {
    __m512 total[4] = {}, square[4] = {};
    each<WHOLE>(width, [&](int i, int at, __mmask16 lanes) {
        total[i] = _mm512_add_ps(total[i], load(x + at, lanes));
    });
    const __m512 mean = _mm512_set1_ps(added_up(total) / width);
    each<WHOLE>(width, [&](int i, int at, __mmask16 lanes) {
        const __m512 apart = _mm512_maskz_sub_ps(lanes, load(x + at, lanes), mean);
        square[i] = _mm512_fmadd_ps(apart, apart, square[i]);
    });
    const __m512 scale = _mm512_set1_ps(1 / std::sqrt(added_up(square) / width + eps));
    each<WHOLE>(width, [&](int, int at, __mmask16 lanes) {
        const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(load(x + at, lanes), mean), scale);
        store(out + at, lanes,
              _mm512_fmadd_ps(unit, load(weight + at, lanes), load(bias + at, lanes)));
    });
}

}  // namespace

// x, out: (rows, width), contiguous.
extern "C" int sdbatch_layer_norm(const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                                  bfloat16* out, const Sizes* sizes, float eps) {
    const Sizes& s = *sizes;
    const auto row_norm = s.width % AT_ONCE ? norm<false> : norm<true>;
#pragma omp parallel for num_threads(s.threads)
    for (int row = 0; row < s.rows; row++) {
        const std::size_t at = std::size_t(row) * s.width;
        row_norm(x + at, weight, bias, out + at, s.width, eps);
    }
    return 0;
}
