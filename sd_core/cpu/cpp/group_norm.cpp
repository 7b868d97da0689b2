// Group norm in bfloat16 (Wu & He 2018) of maps in channels-last, with SiLU in the same pass, and with
// a number for each channel that is added to the map before: its sums follow from the map's, so that
// no pass is needed for it.
//
// Sums are taken of pieces of a map whose size depends on the map alone and are added up in their
// order, so that a row's numbers depend on no other row and on no thread.

#include <cmath>
#include <new>
#include <vector>

#include "vectors.h"

namespace {

constexpr int AT_ONCE = 4 * LANES;  // channels whose sums stay in registers
constexpr int PIECES = 16;          // of a map, at most
constexpr int LEAST = 64;           // pixels of a piece

struct Sizes {
    std::int32_t rows, pixels, channels, groups, silu, threads;
};

// Of each channel: the sum, then the sum of squares.
void sum(const bfloat16* x, int pixels, int channels, float* sums, float* squares) {
    for (int from = 0; from < channels; from += AT_ONCE) {
        __m512 total[4] = {}, square[4] = {};
        __mmask16 lanes[4];
        for (int i = 0; i < 4; i++) lanes[i] = first(channels - from - i * LANES);
        for (int pixel = 0; pixel < pixels; pixel++)
            for (int i = 0; i < 4; i++) {
                const std::size_t at = std::size_t(pixel) * channels + from + i * LANES;
                const __m512 value = load(x + at, lanes[i]);
                total[i] = _mm512_add_ps(total[i], value);
                square[i] = _mm512_fmadd_ps(value, value, square[i]);
            }
        for (int i = 0; i < 4; i++) {
            _mm512_mask_storeu_ps(sums + from + i * LANES, lanes[i], total[i]);
            _mm512_mask_storeu_ps(squares + from + i * LANES, lanes[i], square[i]);
        }
    }
}

float number(const bfloat16* from) { return _mm512_cvtss_f32(load(from, 1)); }

// What each channel is multiplied by and what is added then, from the sums of all pieces. added: what
// is added to each channel before, or null.
void scale_and_shift(const float* sums, int parts, const Sizes& s, const bfloat16* added,
                     const bfloat16* weight, const bfloat16* bias, float eps, float* scale,
                     float* shift) {
    const int size = s.channels / s.groups;
    const double count = double(s.pixels) * size;
    for (int from = 0; from < s.channels; from += size) {
        double total = 0, square = 0;
        for (int c = from; c < from + size; c++) {
            double sum = 0, squares = 0;
            for (int part = 0; part < parts; part++) {
                sum += sums[2 * part * s.channels + c];
                squares += sums[(2 * part + 1) * s.channels + c];
            }
            const double more = added ? number(added + c) : 0;
            total += sum + s.pixels * more;
            square += squares + more * (2 * sum + s.pixels * more);
        }
        const double mean = total / count;
        // Squares beyond float32 would make all of a group zero, and hide that a model blew up.
        const double variance = std::isfinite(square) ? square / count - mean * mean : NAN;
        const double inverse = 1 / std::sqrt(std::max(variance, 0.0) + eps);
        for (int c = from; c < from + size; c++) {
            const double more = added ? number(added + c) : 0;
            scale[c] = float(inverse * number(weight + c));
            shift[c] = float(number(bias + c) + (more - mean) * scale[c]);
        }
    }
}

template <bool SILU>
void apply(const bfloat16* x, bfloat16* out, int pixels, int channels, const float* scale,
           const float* shift) {
    const __m512 one = _mm512_set1_ps(1), log2e = _mm512_set1_ps(-static_cast<float>(M_LOG2E));
    for (int pixel = 0; pixel < pixels; pixel++, x += channels, out += channels)
        for (int c = 0; c < channels; c += LANES) {
            const __mmask16 lanes = first(channels - c);
            __m512 y = _mm512_fmadd_ps(load(x + c, lanes), _mm512_maskz_loadu_ps(lanes, scale + c),
                                       _mm512_maskz_loadu_ps(lanes, shift + c));
            if constexpr (SILU) {
                const __m512 below = _mm512_add_ps(one, exp2(_mm512_mul_ps(y, log2e)));
                // To 2^-14, a thirtieth of what rounding takes.
                y = _mm512_mul_ps(y, _mm512_rcp14_ps(below));
            }
            store(out + c, lanes, y);
        }
}

}  // namespace

// x, out: (rows, pixels, channels), contiguous; added: (rows, channels), contiguous, or null.
// Returns 0; 1 where memory is lacking.
extern "C" int sdbatch_group_norm(const bfloat16* x, const bfloat16* added, const bfloat16* weight,
                                  const bfloat16* bias, bfloat16* out, const Sizes* sizes,
                                  float eps) {
    const Sizes& s = *sizes;
    const int piece = std::max(LEAST, pieces(s.pixels, PIECES));
    const int parts = pieces(s.pixels, piece);
    std::vector<float> memory;
    try {
        memory.resize(std::size_t(s.rows) * (parts + 1) * 2 * s.channels);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    float* sums = memory.data();
    float* scales = sums + std::size_t(s.rows) * parts * 2 * s.channels;
#pragma omp parallel num_threads(s.threads)
    {
#pragma omp for
        for (int item = 0; item < s.rows * parts; item++) {
            const int from = item % parts * piece, count = std::min(piece, s.pixels - from);
            const std::size_t at = std::size_t(item / parts) * s.pixels + from;
            float* to = sums + std::size_t(item) * 2 * s.channels;
            sum(x + at * s.channels, count, s.channels, to, to + s.channels);
        }
#pragma omp for
        for (int row = 0; row < s.rows; row++) {
            float* scale = scales + std::size_t(row) * 2 * s.channels;
            scale_and_shift(sums + std::size_t(row) * parts * 2 * s.channels, parts, s,
                            added ? added + std::size_t(row) * s.channels : nullptr, weight, bias,
                            eps, scale, scale + s.channels);
        }
#pragma omp for
        for (int item = 0; item < s.rows * parts; item++) {
            const int from = item % parts * piece, count = std::min(piece, s.pixels - from);
            const std::size_t at = (std::size_t(item / parts) * s.pixels + from) * s.channels;
            const float* scale = scales + std::size_t(item / parts) * 2 * s.channels;
            (s.silu ? apply<true> : apply<false>)(x + at, out + at, count, s.channels, scale,
                                                  scale + s.channels);
        }
    }
    return 0;
}
