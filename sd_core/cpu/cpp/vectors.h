// What the kernels share: bfloat16 numbers and vectors of 16 of them.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

using bfloat16 = std::uint16_t;

constexpr int LANES = 16;

constexpr int pieces(int n, int size) { return (n + size - 1) / size; }

// The first n lanes.
inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << std::clamp(n, 0, LANES)) - 1); }

inline __m512 load(const bfloat16* from, __mmask16 lanes) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(bfloat16* to, __mmask16 lanes, __m512 numbers) {
    const __m256bh rounded = _mm512_cvtneps_pbh(numbers);
    _mm256_mask_storeu_epi16(to, lanes, reinterpret_cast<const __m256i&>(rounded));
}

// 2^x to 7.5e-5, a fiftieth of what rounding to bfloat16 takes: a cubic for the fraction, with the
// least greatest relative error on [0, 1].
inline __m512 exp2(__m512 x) {
    const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 power = _mm512_set1_ps(0.0780245302f);
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.226067146f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.695833543f));
    power = _mm512_fmadd_ps(power, fraction, _mm512_set1_ps(0.999925219f));
    return _mm512_scalef_ps(power, x);  // by the whole part
}
