// Attention in bfloat16, by AMX where there is such; `sd_core/cpu/kernels.py` says what for.
//
// FlashAttention (Dao et al. 2022) with the online softmax of Milakov & Gimelshein 2018: blocks of
// queries pass over blocks of keys small enough to stay in the first-level cache, and no score is
// kept. A query's numbers depend on no other query, on no other row, and on no thread.
//
// AMX has eight tiles of 16 rows of 64 bytes. A product adds a (16 x 32 bfloat16) tile times a
// (32 x 16) one, whose rows hold pairs of its own, to a (16 x 16 float32) one. Without it, AVX-512
// multiplies such a row of pairs by one pair for all: the same order in memory serves both.

#include <atomic>
#include <cmath>
#include <cstring>

#include "memory.h"
#include "vectors.h"

namespace {

using Pair = std::uint32_t;  // two bfloat16, one above the other in a column

constexpr int TILE = 16;             // rows of a tile, and its columns of 32 bits
constexpr int PAIRS = 2 * TILE;      // its columns of 16 bits
constexpr int AREA = TILE * TILE;    // its elements of 32 bits
constexpr int QUERIES = 2 * TILE;    // of a block
constexpr int KEYS = 128;            // of a block: with values and scores, 46 KiB at v1's head size
constexpr int VECTORS = KEYS / TILE; // of scores, in a row of a block
constexpr int STEP = KEYS + TILE;    // between rows of scores; a power of two would crowd the cache
constexpr int AT_ONCE = 8;           // queries whose sums stay in registers, without AMX

struct Strides {  // in elements; those of a head's own numbers are 1
    std::int64_t row, head, token;
};

struct Sizes {
    std::int32_t rows, heads, queries, keys, dim, threads, amx;
    Strides q, k, v;
};

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];

    TileConfig() {
        std::fill_n(row_bytes, 16, 0);
        std::fill_n(rows, 16, 0);
        std::fill_n(row_bytes, 8, 64);
        std::fill_n(rows, 8, TILE);
    }
};

// GCC does not know that tile instructions read and write memory.
void tiles_see_memory() { std::atomic_signal_fence(std::memory_order_seq_cst); }

template <bool AMX>
class Head {
  public:
    Head(int keys, int dim, Memory& memory)
        : keys_(keys), dim_(dim), chunks_(pieces(dim, PAIRS)), groups_(pieces(dim, TILE)) {
        const std::size_t key_tiles = pieces(keys, PAIRS);
        memory.reset(4 * AREA * key_tiles * (2 * chunks_ + groups_) +
                     QUERIES * (2 * PAIRS * chunks_ + 4 * TILE * groups_ + 4 * STEP));
        packed_keys_ = memory.take<Pair>(AREA * key_tiles * 2 * chunks_);
        packed_values_ = memory.take<Pair>(AREA * key_tiles * groups_);
        queries_ = memory.take<bfloat16>(QUERIES * PAIRS * chunks_);
        sums_ = memory.take<float>(QUERIES * TILE * groups_);
        scores_ = memory.take<float>(QUERIES * STEP);
    }

    // Tiles of the transposed keys: of 16 keys each, those of 32 dimensions one after the other.
    void pack_keys(const bfloat16* keys, std::int64_t token) {
        const __m512i lanes = _mm512_mullo_epi32(
            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            _mm512_set1_epi32(static_cast<int>(token)));
        Pair* to = packed_keys_;
        for (int key = 0; key < pieces(keys_, PAIRS) * PAIRS; key += TILE)
            for (int d = 0; d < chunks_ * PAIRS; d += 2, to += TILE) {
                const __mmask16 here = d < dim_ ? first(keys_ - key) : 0;
                const __m512i pairs = _mm512_mask_i32gather_epi32(
                    _mm512_setzero_si512(), here, lanes, keys + key * token + d, sizeof(bfloat16));
                _mm512_store_si512(to, pairs);
            }
    }

    // Tiles of the values: of 32 keys each, those of 16 dimensions one after the other.
    void pack_values(const bfloat16* values, std::int64_t token) {
        Pair* to = packed_values_;
        for (int key = 0; key < pieces(keys_, PAIRS) * PAIRS; key += PAIRS)
            for (int d = 0; d < groups_ * TILE; d += TILE)
                for (int pair = key; pair < key + PAIRS; pair += 2, to += TILE) {
                    __m512i row[2];
                    for (int i = 0; i < 2; i++) {
                        const __mmask16 here = pair + i < keys_ ? first(dim_ - d) : 0;
                        row[i] = _mm512_cvtepu16_epi32(
                            _mm256_maskz_loadu_epi16(here, values + (pair + i) * token + d));
                    }
                    _mm512_store_si512(to, _mm512_or_si512(row[0], _mm512_slli_epi32(row[1], 16)));
                }
    }

    // Up to QUERIES queries to all keys. scale: of the scores, times log2(e).
    void attend(const bfloat16* queries, std::int64_t token, int count, float scale, bfloat16* out,
                std::int64_t out_token) {
        float most[QUERIES], total[QUERIES];
        std::fill_n(most, QUERIES, -1e30f);
        std::fill_n(total, QUERIES, 0.0f);
        std::fill_n(sums_, QUERIES * TILE * groups_, 0.0f);
        std::fill_n(queries_, QUERIES * PAIRS * chunks_, bfloat16{0});
        for (int i = 0; i < count; i++)
            std::copy_n(queries + i * token, dim_, queries_ + i * PAIRS * chunks_);
        for (int key = 0; key < keys_; key += KEYS) {
            const int here = std::min(KEYS, keys_ - key), tiles = pieces(here, PAIRS);
            const int before = key / PAIRS;
            score(packed_keys_ + before * 2 * chunks_ * AREA, tiles);
            for (int i = 0; i < count; i++) {
                std::fill(scores_ + i * STEP + here, scores_ + i * STEP + KEYS, -INFINITY);
                weigh(i, scale, most[i], total[i]);
            }
            constexpr int most_groups = AMX ? 2 : 3;  // at once, by the registers for sums
            for (int group = 0; group < groups_; group += most_groups) {
                const Pair* values = packed_values_ + (before * groups_ + group) * AREA;
                const int groups = std::min(most_groups, groups_ - group);
                if (groups == 1) sum<1>(values, tiles, group);
                if (groups == 2) sum<2>(values, tiles, group);
                if constexpr (!AMX)
                    if (groups == 3) sum<3>(values, tiles, group);
            }
        }
        for (int i = 0; i < count; i++) {
            const __m512 share = _mm512_set1_ps(1.0f / total[i]);
            for (int d = 0; d < dim_; d += TILE) {
                const __m512 sums = _mm512_load_ps(sums_ + i * TILE * groups_ + d);
                store(out + i * out_token + d, first(dim_ - d), _mm512_mul_ps(sums, share));
            }
        }
    }

  private:
    // Scores of the block's queries and `tiles` times 32 keys.
    void score(const Pair* keys, int tiles) {
        if constexpr (AMX) {
            score_by_tiles(keys, tiles);
        } else {
            for (int query = 0; query < QUERIES; query += AT_ONCE)
                for (int tile = 0; tile < tiles; tile++) score_by_rows(query, keys, tile);
        }
    }

    // Of some queries and 32 keys.
    void score_by_rows(int query, const Pair* keys, int tile) {
        const int step = chunks_ * PAIRS;
        const bfloat16* queries = queries_ + query * step;
        const Pair* left = keys + 2 * tile * chunks_ * AREA;
        const Pair* right = left + chunks_ * AREA;
        __m512 score[AT_ONCE][2] = {};
        for (int pair = 0; pair < pieces(dim_, 2); pair++) {
            const __m512bh of_keys[2] = {row(left + pair * TILE), row(right + pair * TILE)};
            for (int i = 0; i < AT_ONCE; i++) {
                const __m512bh of_query = everywhere(queries + i * step + 2 * pair);
                for (int j = 0; j < 2; j++)
                    score[i][j] = _mm512_dpbf16_ps(score[i][j], of_query, of_keys[j]);
            }
        }
        float* to = scores_ + query * STEP + tile * PAIRS;
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < 2; j++) _mm512_store_ps(to + i * STEP + j * TILE, score[i][j]);
    }

    static __m512bh row(const Pair* from) {
        return reinterpret_cast<__m512bh>(_mm512_load_si512(from));
    }

    static __m512bh everywhere(const bfloat16* pair) {
        int both;
        std::memcpy(&both, pair, sizeof(both));
        return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
    }

    void score_by_tiles(const Pair* keys, int tiles) {
        const int step = chunks_ * PAIRS * sizeof(bfloat16);
        const bfloat16* lower = queries_ + TILE * PAIRS * chunks_;
        tiles_see_memory();
        for (int tile = 0; tile < tiles; tile++) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int chunk = 0; chunk < chunks_; chunk++) {
                const Pair* pairs = keys + (2 * tile * chunks_ + chunk) * AREA;
                _tile_loadd(4, queries_ + chunk * PAIRS, step);
                _tile_loadd(5, lower + chunk * PAIRS, step);
                _tile_loadd(6, pairs, 64);
                _tile_loadd(7, pairs + chunks_ * AREA, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            float* to = scores_ + tile * PAIRS;
            _tile_stored(0, to, STEP * sizeof(float));
            _tile_stored(1, to + TILE, STEP * sizeof(float));
            _tile_stored(2, to + TILE * STEP, STEP * sizeof(float));
            _tile_stored(3, to + TILE * STEP + TILE, STEP * sizeof(float));
        }
        tiles_see_memory();
    }

    // One query's scores become weights, relative to its greatest score so far; what it has summed
    // up before is made relative to that, too.
    void weigh(int query, float scale, float& most, float& total) {
        float* scores = scores_ + query * STEP;
        __m512 score[VECTORS];
        __m512 greatest = _mm512_load_ps(scores);
        for (int i = 0; i < VECTORS; i++) {
            score[i] = _mm512_load_ps(scores + i * TILE);
            greatest = _mm512_max_ps(greatest, score[i]);
        }
        const float now = scale * _mm512_reduce_max_ps(greatest);
        if (now > most) {
            const __m512 factor = exp2(_mm512_set1_ps(most - now));
            most = now;
            total *= _mm512_cvtss_f32(factor);
            float* sums = sums_ + query * TILE * groups_;
            for (int i = 0; i < groups_; i++, sums += TILE)
                _mm512_store_ps(sums, _mm512_mul_ps(factor, _mm512_load_ps(sums)));
        }
        const __m512 times = _mm512_set1_ps(scale), less = _mm512_set1_ps(most);
        __m512 sum = _mm512_setzero_ps();
        // Over the scores, which are in registers: a weight takes half the room.
        bfloat16* weights = reinterpret_cast<bfloat16*>(scores);
        for (int i = 0; i < VECTORS; i += 2) {
            const __m512 left = exp2(_mm512_fmsub_ps(score[i], times, less));
            const __m512 right = exp2(_mm512_fmsub_ps(score[i + 1], times, less));
            sum = _mm512_add_ps(sum, _mm512_add_ps(left, right));
            const __m512bh both = _mm512_cvtne2ps_pbh(right, left);
            _mm512_store_si512(weights + i * TILE, reinterpret_cast<const __m512i&>(both));
        }
        total += _mm512_reduce_add_ps(sum);
    }

    // Adds weighed values of `tiles` times 32 keys to the sums of some groups of dimensions.
    template <int GROUPS>
    void sum(const Pair* values, int tiles, int group) {
        if constexpr (AMX) {
            sum_by_tiles<GROUPS>(values, tiles, group);
        } else {
            for (int query = 0; query < QUERIES; query += AT_ONCE)
                sum_by_rows<GROUPS>(query, values, tiles, group);
        }
    }

    template <int GROUPS>
    void sum_by_rows(int query, const Pair* values, int tiles, int group) {
        float* sums = sums_ + query * TILE * groups_ + group * TILE;
        const bfloat16* weights = reinterpret_cast<const bfloat16*>(scores_ + query * STEP);
        __m512 sum[AT_ONCE][GROUPS];
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < GROUPS; j++)
                sum[i][j] = _mm512_load_ps(sums + (i * groups_ + j) * TILE);
        for (int tile = 0; tile < tiles; tile++, values += groups_ * AREA)
            for (int pair = 0; pair < TILE; pair++) {
                __m512bh of_values[GROUPS];
                for (int j = 0; j < GROUPS; j++)
                    of_values[j] = row(values + j * AREA + pair * TILE);
                for (int i = 0; i < AT_ONCE; i++) {
                    const __m512bh weight =
                        everywhere(weights + 2 * (i * STEP + tile * TILE + pair));
                    for (int j = 0; j < GROUPS; j++)
                        sum[i][j] = _mm512_dpbf16_ps(sum[i][j], weight, of_values[j]);
                }
            }
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < GROUPS; j++)
                _mm512_store_ps(sums + (i * groups_ + j) * TILE, sum[i][j]);
    }

    template <int GROUPS>
    void sum_by_tiles(const Pair* values, int tiles, int group) {
        constexpr bool two = GROUPS == 2;
        const int step = TILE * groups_ * sizeof(float);
        float* upper = sums_ + group * TILE;
        float* lower = upper + TILE * TILE * groups_;
        tiles_see_memory();
        _tile_loadd(0, upper, step);
        _tile_loadd(2, lower, step);
        if constexpr (two) {
            _tile_loadd(1, upper + TILE, step);
            _tile_loadd(3, lower + TILE, step);
        }
        for (int tile = 0; tile < tiles; tile++) {
            const bfloat16* weights = reinterpret_cast<const bfloat16*>(scores_) + tile * PAIRS;
            const Pair* pairs = values + tile * groups_ * AREA;
            _tile_loadd(4, weights, STEP * sizeof(float));
            _tile_loadd(5, weights + 2 * TILE * STEP, STEP * sizeof(float));
            _tile_loadd(6, pairs, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (two) {
                _tile_loadd(7, pairs + AREA, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, upper, step);
        _tile_stored(2, lower, step);
        if constexpr (two) {
            _tile_stored(1, upper + TILE, step);
            _tile_stored(3, lower + TILE, step);
        }
        tiles_see_memory();
    }

    int keys_, dim_;
    int chunks_, groups_;  // of 32 and of 16 dimensions, the last one filled up with zeros
    Pair *packed_keys_, *packed_values_;
    bfloat16* queries_;
    float *sums_, *scores_;
};

// A share of one head's blocks of queries, from number `from` to before number `to`.
template <bool AMX>
void attend(const bfloat16* q, const bfloat16* k, const bfloat16* v, bfloat16* out, const Sizes& s,
            float scale, int from, int to, Memory& memory) {
    const std::int64_t out_token = std::int64_t{s.heads} * s.dim;
    Head<AMX> head(s.keys, s.dim, memory);
    head.pack_keys(k, s.k.token);
    head.pack_values(v, s.v.token);
    for (int i = from * QUERIES; i < to * QUERIES; i += QUERIES)
        head.attend(q + i * s.q.token, s.q.token, std::min(QUERIES, s.queries - i), scale,
                    out + i * out_token, out_token);
}

}  // namespace

// out: (rows, queries, heads, dim), contiguous. Returns 0; 1 where memory is lacking.
extern "C" int sdbatch_attention(const bfloat16* q, const bfloat16* k, const bfloat16* v,
                                 bfloat16* out, const Sizes* sizes, float scale) {
    const Sizes& s = *sizes;
    // Few heads are shared by several threads, each of which packs their keys for itself.
    const int all = s.rows * s.heads, blocks = pieces(s.queries, QUERIES);
    const int share = pieces(blocks, std::clamp(pieces(4 * s.threads, all), 1, blocks));
    const int parts = pieces(blocks, share);
    const float scale_2 = scale * static_cast<float>(M_LOG2E);
    std::atomic<int> failed = 0;
#pragma omp parallel num_threads(s.threads)
    {
        static thread_local Memory memory;
        const TileConfig config;
        if (s.amx) _tile_loadconfig(&config);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < all * parts; item++) {
            const std::int64_t row = item / parts / s.heads, h = item / parts % s.heads;
            const int from = item % parts * share, to = std::min(blocks, from + share);
            try {
                (s.amx ? attend<true> : attend<false>)(
                    q + row * s.q.row + h * s.q.head, k + row * s.k.row + h * s.k.head,
                    v + row * s.v.row + h * s.v.head,
                    out + (row * s.queries * s.heads + h) * s.dim, s, scale_2, from, to, memory);
            } catch (const std::bad_alloc&) {
                failed = 1;
            }
        }
        if (s.amx) _tile_release();
    }
    return failed;
}
