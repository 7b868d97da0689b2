// Convolutions of 3 x 3 in bfloat16 by Winograd's F(2 x 2, 3 x 3) (Lavin & Gray 2016): 16 products for
// 2 x 2 pixels of the output instead of 36. Maps are in channels-last, stride and padding are 1.
//
// A tile is 4 x 4 pixels of the input, two apart from the next, and gives 2 x 2 of the output. It
// becomes 16 parts, as the weight did; parts are multiplied, summed over the channels in float32, and
// 16 sums become 4 pixels. Tiles come in blocks, which read the weight once. A tile's numbers depend
// on no other tile, on no other row, and on no thread.

#include "blocks.h"
#include "products.h"

namespace {

constexpr int PARTS = 16;
constexpr int BLOCK = 16 * ROWS;  // tiles at most; 1.3 MiB at 320 channels, 8 at 2560
constexpr int LINE = 64;          // bytes of a cache line
constexpr __mmask16 ALL = -1;

struct Sizes {
    std::int32_t rows, height, width, in, out, doubled, threads;
};

// Which parts there are. A map that is doubled by its nearest neighbours has pairs of equal columns
// and rows in the middle of its tiles, so that the part of their difference is nothing.
template <bool DOUBLED>
struct Axis {
    static constexpr int COUNT = DOUBLED ? 3 : 4;
    static constexpr int OF_WEIGHT[4] = {0, 1, DOUBLED ? 3 : 2, 3};

    // B^T d, of a column or a row of a tile.
    static void into_parts(const __m512 d[4], __m512 to[COUNT]) {
        to[0] = _mm512_sub_ps(d[0], d[2]);
        to[1] = _mm512_add_ps(d[1], d[2]);
        if constexpr (!DOUBLED) to[2] = _mm512_sub_ps(d[2], d[1]);
        to[COUNT - 1] = _mm512_sub_ps(d[1], d[3]);
    }

    // A^T m, of a column or a row of sums.
    static void out_of_parts(const __m512 m[COUNT], __m512 to[2]) {
        to[0] = _mm512_add_ps(m[0], m[1]);
        to[1] = m[1];
        if constexpr (!DOUBLED) {
            to[0] = _mm512_add_ps(to[0], m[2]);
            to[1] = _mm512_sub_ps(to[1], m[2]);
        }
        to[1] = _mm512_sub_ps(to[1], m[COUNT - 1]);
    }
};

struct Place {
    int row, y, x;  // of the tile's first output
};

template <bool DOUBLED>
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
        memory.reset(COUNT * COUNT * (step * sizeof(bfloat16) + sums_step * sizeof(float)) + 2 * LINE);
        auto* parts = memory.take<bfloat16>(COUNT * COUNT * step);
        auto* sums = memory.take<float>(COUNT * COUNT * sums_step);
        for (int i = 0; i < tiles; i++)
            take_apart(place(from + i), parts + std::size_t(i) * s.in, step);
        const std::size_t panel = std::size_t(s.in) * WIDTH;
        for (int c = 0; c < s.out; c += WIDTH) {
            for (int part = 0; part < COUNT * COUNT; part++) {
                const int y = OF_WEIGHT[part / COUNT], x = OF_WEIGHT[part % COUNT];
                multiply(parts + part * step, tiles, s.in,
                         weight_ + (c / WIDTH * PARTS + 4 * y + x) * panel, s.in,
                         sums + part * sums_step);
            }
            for (int i = 0; i < tiles; i++)
                put_together(place(from + i), c, sums + i * WIDTH, sums_step);
        }
    }

  private:
    using Parts = Axis<DOUBLED>;
    static constexpr int COUNT = Parts::COUNT;
    static constexpr auto& OF_WEIGHT = Parts::OF_WEIGHT;

    Place place(int tile) const {
        const int in_row = tile % in_a_row_;
        return {tile / in_a_row_, in_row / across_ * 2, in_row % across_ * 2};
    }

    bool inside(int y, int x) const { return y >= 0 && y < s.height && x >= 0 && x < s.width; }

    // The pixel of the input there, or null outside.
    const bfloat16* input(int row, int y, int x) const {
        if (!inside(y, x)) return nullptr;
        constexpr int shrunk = DOUBLED ? 2 : 1;
        const std::size_t line = std::size_t(row) * (s.height / shrunk) + y / shrunk;
        return x_ + (line * (s.width / shrunk) + x / shrunk) * s.in;
    }

    // A tile becomes its parts.
    void take_apart(const Place& at, bfloat16* to, std::size_t step) const {
        const bfloat16* from[4][4];
        for (int y = 0; y < 4; y++)
            for (int x = 0; x < 4; x++) from[y][x] = input(at.row, at.y + y - 1, at.x + x - 1);
        for (int c = 0; c < s.in; c += LANES) {
            __m512 half[COUNT][4];
            for (int x = 0; x < 4; x++) {
                __m512 column[4], parts[COUNT];
                for (int y = 0; y < 4; y++)
                    column[y] = from[y][x] ? load(from[y][x] + c, ALL) : _mm512_setzero_ps();
                Parts::into_parts(column, parts);
                for (int y = 0; y < COUNT; y++) half[y][x] = parts[y];
            }
            for (int y = 0; y < COUNT; y++) {
                __m512 whole[COUNT];
                Parts::into_parts(half[y], whole);
                for (int x = 0; x < COUNT; x++) store(to + (COUNT * y + x) * step + c, ALL, whole[x]);
            }
        }
    }

    // The sums of its parts become a tile's pixels, in WIDTH channels.
    void put_together(const Place& at, int channel, const float* sums, std::size_t step) const {
        for (int c = channel; c < channel + WIDTH; c += LANES, sums += LANES) {
            __m512 half[2][COUNT];
            for (int x = 0; x < COUNT; x++) {
                __m512 column[COUNT], pixels[2];
                for (int y = 0; y < COUNT; y++)
                    column[y] = _mm512_loadu_ps(sums + (COUNT * y + x) * step);
                Parts::out_of_parts(column, pixels);
                for (int y = 0; y < 2; y++) half[y][x] = pixels[y];
            }
            const __m512 bias = load(bias_ + c, ALL);
            for (int y = 0; y < 2; y++) {
                __m512 whole[2];
                Parts::out_of_parts(half[y], whole);
                for (int x = 0; x < 2; x++) {
                    if (!inside(at.y + y, at.x + x)) continue;
                    const std::size_t line = std::size_t(at.row) * s.height + at.y + y;
                    const std::size_t to = (line * s.width + at.x + x) * s.out + c;
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

// x: (rows, height, width, in), or half as high and half as wide and `doubled`; weight: see below;
// bias: (out,); added: (rows, height, width, out), or null; out likewise. Returns 0; 1 where memory is
// lacking.
extern "C" int sdbatch_winograd(const bfloat16* x, const bfloat16* weight, const bfloat16* bias,
                                const bfloat16* added, bfloat16* out, const Sizes* sizes, float) {
    const auto run = [&](const auto& convolution) {
        return in_blocks(convolution.tiles(), BLOCK, sizes->threads,
                         [&](int from, int tiles, Memory& memory) {
                             convolution.block(from, tiles, memory);
                         });
    };
    if (sizes->doubled) return run(Convolution<true>(*sizes, x, weight, bias, added, out));
    return run(Convolution<false>(*sizes, x, weight, bias, added, out));
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
