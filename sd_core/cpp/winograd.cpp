// Convolutions of 3 x 3 in bfloat16 by Winograd's F(2 x 2, 3 x 3) (Lavin & Gray 2016): 16 products for
// 2 x 2 pixels of the output instead of 36. Maps are in channels-last, stride and padding are 1.
//
// A tile is 4 x 4 pixels of the input, two apart from the next, and gives 2 x 2 of the output. It
// becomes 16 parts, as the weight did; parts are multiplied, summed over the channels in float32, and
// 16 sums become 4 pixels. Tiles come in blocks, which read the weight once. A tile's numbers depend
// on no other tile, on no other row, and on no thread.

#include <atomic>
#include <cstring>

#include "memory.h"
#include "vectors.h"

namespace {

using Pair = std::int32_t;  // two bfloat16, of neighbouring channels

constexpr int PARTS = 16;
constexpr int VECTORS = 4;              // of channels of the output, summed together
constexpr int WIDTH = VECTORS * LANES;  // such channels
constexpr int TILES = 6;                // together: 24 sums and 5 factors fill 32 registers
constexpr int BLOCK = 16 * TILES;       // tiles at most; 1.4 MiB at 320 channels, 8 at 2560
constexpr int LINE = 64;                // bytes of a cache line
constexpr __mmask16 ALL = -1;

struct Sizes {
    std::int32_t rows, height, width, in, out, threads;
};

// sums (R, WIDTH) = tiles (R, in) times weight (in / 2, WIDTH, 2).
template <int R>
void multiply(const bfloat16* tiles, const bfloat16* weight, int in, float* sums) {
    __m512 sum[R][VECTORS] = {};
    for (int c = 0; c < in; c += 2, weight += 2 * WIDTH) {
        __m512bh factor[VECTORS];
        for (int i = 0; i < VECTORS; i++) {
            const __m512i pairs = _mm512_loadu_si512(weight + i * 2 * LANES);
            factor[i] = reinterpret_cast<const __m512bh&>(pairs);
        }
        for (int r = 0; r < R; r++) {
            Pair pair;
            std::memcpy(&pair, tiles + std::size_t(r) * in + c, sizeof(pair));
            const __m512i pairs = _mm512_set1_epi32(pair);
            for (int i = 0; i < VECTORS; i++)
                sum[r][i] = _mm512_dpbf16_ps(
                    sum[r][i], reinterpret_cast<const __m512bh&>(pairs), factor[i]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < VECTORS; i++)
            _mm512_storeu_ps(sums + r * WIDTH + i * LANES, sum[r][i]);
}

using Multiply = void (*)(const bfloat16*, const bfloat16*, int, float*);
constexpr Multiply MULTIPLY[TILES + 1] = {nullptr,     multiply<1>, multiply<2>, multiply<3>,
                                          multiply<4>, multiply<5>, multiply<6>};

// B^T d, of a column or a row of a tile.
inline void into_parts(const __m512 d[4], __m512 to[4]) {
    to[0] = _mm512_sub_ps(d[0], d[2]);
    to[1] = _mm512_add_ps(d[1], d[2]);
    to[2] = _mm512_sub_ps(d[2], d[1]);
    to[3] = _mm512_sub_ps(d[1], d[3]);
}

// A^T m, of a column or a row of sums.
inline void out_of_parts(const __m512 m[4], __m512 to[2]) {
    to[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    to[1] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
}

struct Place {
    int row, y, x;  // of the tile's first output
};

class Convolution {
  public:
    Convolution(const Sizes& sizes, const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                const bfloat16* added, bfloat16* out)
        : s(sizes), x_(x), weight_(weight), bias_(bias), added_(added), out_(out),
          across_(pieces(s.width, 2)), in_a_row_(across_ * pieces(s.height, 2)) {}

    int tiles() const { return s.rows * in_a_row_; }

    // The block of tiles from number `from`.
    void block(int from, int tiles, Memory& memory) const {
        // One cache line further apart, or all parts would want the same places in the cache.
        const std::size_t step = std::size_t(tiles) * s.in + LINE / sizeof(bfloat16);
        const std::size_t sums_step = std::size_t(tiles) * WIDTH + LINE / sizeof(float);
        memory.reset(PARTS * (step * sizeof(bfloat16) + sums_step * sizeof(float)) + 2 * LINE);
        auto* parts = memory.take<bfloat16>(PARTS * step);
        auto* sums = memory.take<float>(PARTS * sums_step);
        for (int i = 0; i < tiles; i++)
            take_apart(place(from + i), parts + std::size_t(i) * s.in, step);
        const bfloat16* weight = weight_;
        for (int c = 0; c < s.out; c += WIDTH) {
            for (int part = 0; part < PARTS; part++, weight += std::size_t(s.in) * WIDTH)
                for (int i = 0; i < tiles; i += TILES)
                    MULTIPLY[std::min(TILES, tiles - i)](
                        parts + part * step + std::size_t(i) * s.in, weight, s.in,
                        sums + part * sums_step + i * WIDTH);
            for (int i = 0; i < tiles; i++)
                put_together(place(from + i), c, sums + i * WIDTH, sums_step);
        }
    }

  private:
    Place place(int tile) const {
        const int in_row = tile % in_a_row_;
        return {tile / in_a_row_, in_row / across_ * 2, in_row % across_ * 2};
    }

    bool inside(int y, int x) const { return y >= 0 && y < s.height && x >= 0 && x < s.width; }

    std::size_t pixel(const Place& at, int y, int x) const {
        return (std::size_t(at.row) * s.height + at.y + y) * s.width + at.x + x;
    }

    // A tile becomes 16 parts.
    void take_apart(const Place& at, bfloat16* to, std::size_t step) const {
        const bfloat16* from[4][4];
        for (int y = 0; y < 4; y++)
            for (int x = 0; x < 4; x++)
                from[y][x] = inside(at.y + y - 1, at.x + x - 1)
                                 ? x_ + pixel(at, y - 1, x - 1) * s.in
                                 : nullptr;
        for (int c = 0; c < s.in; c += LANES) {
            __m512 half[4][4];
            for (int x = 0; x < 4; x++) {
                __m512 column[4], parts[4];
                for (int y = 0; y < 4; y++)
                    column[y] = from[y][x] ? load(from[y][x] + c, ALL) : _mm512_setzero_ps();
                into_parts(column, parts);
                for (int y = 0; y < 4; y++) half[y][x] = parts[y];
            }
            for (int y = 0; y < 4; y++) {
                __m512 whole[4];
                into_parts(half[y], whole);
                for (int x = 0; x < 4; x++) store(to + (4 * y + x) * step + c, -1, whole[x]);
            }
        }
    }

    // 16 sums become a tile's pixels, in WIDTH channels.
    void put_together(const Place& at, int channel, const float* sums, std::size_t step) const {
        for (int c = channel; c < channel + WIDTH; c += LANES, sums += LANES) {
            __m512 half[2][4];
            for (int x = 0; x < 4; x++) {
                __m512 column[4], pixels[2];
                for (int y = 0; y < 4; y++) column[y] = _mm512_loadu_ps(sums + (4 * y + x) * step);
                out_of_parts(column, pixels);
                for (int y = 0; y < 2; y++) half[y][x] = pixels[y];
            }
            const __m512 bias = load(bias_ + c, ALL);
            for (int y = 0; y < 2; y++) {
                __m512 whole[2];
                out_of_parts(half[y], whole);
                for (int x = 0; x < 2; x++) {
                    if (!inside(at.y + y, at.x + x)) continue;
                    const std::size_t to = pixel(at, y, x) * s.out + c;
                    __m512 result = _mm512_add_ps(whole[x], bias);
                    if (added_) result = _mm512_add_ps(result, load(added_ + to, ALL));
                    store(out_ + to, ALL, result);
                }
            }
        }
    }

    const Sizes& s;
    const bfloat16 *x_, *weight_, *bias_, *added_;
    bfloat16* out_;
    int across_, in_a_row_;
};

// G g, of a column or a row of a kernel.
inline void into_parts(const float g[3], float to[4]) {
    to[0] = g[0];
    to[1] = (g[0] + g[2] + g[1]) / 2;
    to[2] = (g[0] + g[2] - g[1]) / 2;
    to[3] = g[2];
}

// A kernel of 3 x 3 becomes 16 parts.
void take_apart(const bfloat16* kernel, bfloat16* to) {
    alignas(64) float g[LANES];
    _mm512_store_ps(g, load(kernel, first(9)));
    float half[3][4];  // by the kernel's columns
    for (int x = 0; x < 3; x++) {
        const float column[3] = {g[x], g[3 + x], g[6 + x]};
        into_parts(column, half[x]);
    }
    alignas(64) float parts[PARTS];
    for (int y = 0; y < 4; y++) {
        const float row[3] = {half[0][y], half[1][y], half[2][y]};
        into_parts(row, parts + 4 * y);
    }
    store(to, ALL, _mm512_load_ps(parts));
}

}  // namespace

// x: (rows, height, width, in); weight: see below; bias: (out,); added: (rows, height, width, out), or
// null; out likewise. Returns 0; 1 where memory is lacking.
extern "C" int sdbatch_winograd(const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                                const bfloat16* added, bfloat16* out, const Sizes* sizes, float) {
    const Convolution convolution(*sizes, x, weight, bias, added, out);
    const int threads = sizes->threads, tiles = convolution.tiles();
    // As many blocks for each thread, of as many tiles.
    const int blocks = threads * std::max(1, pieces(tiles, threads * BLOCK));
    const int size = std::max(1, pieces(tiles, blocks));
    std::atomic<int> failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Memory memory;
#pragma omp for schedule(dynamic)
        for (int from = 0; from < tiles; from += size) {
            try {
                convolution.block(from, std::min(size, tiles - from), memory);
            } catch (const std::bad_alloc&) {
                failed = 1;
            }
        }
    }
    return failed;
}

// weight: (out, in, 3, 3), contiguous. laid_out: its parts, (out / WIDTH, PARTS, in / 2, WIDTH, 2).
// Returns 0.
extern "C" int sdbatch_winograd_weight(const bfloat16* weight, bfloat16* laid_out,
                                       const Sizes* sizes, float) {
    const Sizes& s = *sizes;
#pragma omp parallel for num_threads(s.threads)
    for (int block = 0; block < s.out / WIDTH; block++)
        for (int c = 0; c < s.in; c += 2) {
            bfloat16 pairs[PARTS][WIDTH][2];  // written whole: parts are far from each other
            for (int i = 0; i < 2 * WIDTH; i++) {
                const int lane = i / 2, which = i % 2;
                bfloat16 parts[PARTS];
                take_apart(weight + (std::size_t(block * WIDTH + lane) * s.in + c + which) * 9, parts);
                for (int part = 0; part < PARTS; part++) pairs[part][lane][which] = parts[part];
            }
            for (int part = 0; part < PARTS; part++) {
                const std::size_t at = std::size_t(block * PARTS + part) * s.in + c;
                std::memcpy(laid_out + at * WIDTH, pairs[part], sizeof(pairs[part]));
            }
        }
    return 0;
}
