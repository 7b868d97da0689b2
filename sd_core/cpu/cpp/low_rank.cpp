// Low-rank adapters of convolutions and linear layers, added to what these gave.

#include "low_rank.h"

#include "blocks.h"

namespace {

constexpr int BLOCK = 16 * ROWS;  // pixels at most

struct Sizes {
    std::int32_t height, width, in_height, in_width, channels, out, kernel, stride, padding, threads;
    std::int32_t pixels;  // of all rows that come out
    Shares shares;
};

// sums (count, 16 · vectors) += the convolution's products at `count` pixels from `pixel` on.
void add_pixels(const bfloat16* x, const Sizes& s, int pixel, int count, const bfloat16* panel,
                int vectors, float* sums) {
    const int width = vectors * LANES;
    const std::size_t step = std::size_t(s.stride) * s.channels;
    for (int done = 0, length; done < count; done += length) {
        const int column = (pixel + done) % s.width, line = (pixel + done) / s.width;
        length = std::min(count - done, s.width - column);
        const int image = line / s.height, top = line % s.height * s.stride - s.padding;
        for (int tap = 0; tap < s.kernel * s.kernel; tap++) {
            const int y = top + tap / s.kernel, shift = tap % s.kernel - s.padding;
            if (y < 0 || y >= s.in_height) continue;
            // Those of these pixels whose x · stride + shift lies in the map.
            const int begin = std::max(column, pieces(std::max(0, -shift), s.stride));
            const int end = std::min(column + length, pieces(s.in_width - shift, s.stride));
            if (begin >= end) continue;
            const std::size_t at = (std::size_t(image) * s.in_height + y) * s.in_width;
            add_products(vectors, x + (at + begin * s.stride + shift) * s.channels, end - begin,
                         step, panel + std::size_t(tap) * s.channels * width, s.channels,
                         sums + std::size_t(done + begin - column) * width);
        }
    }
}

}  // namespace

// x: (rows, in_height, in_width, channels); y: (rows, height, width, out), to which the adapters of
// a convolution are added. Ranges of rows are those of pixels of y. Returns 0; 1 where memory is
// lacking.
extern "C" int sdbatch_low_rank(const bfloat16* x, bfloat16* y, const Sizes* sizes, float) {
    const Sizes& s = *sizes;
    const std::size_t depth = std::size_t(s.kernel) * s.kernel * s.channels;
    return in_blocks(s.pixels, BLOCK, s.threads, [&](int from, int rows, Memory& memory) {
        BlockShares shares(s.shares, from, rows);
        if (shares.none()) return;
        const std::size_t count = std::size_t(rows) * WIDTH;
        memory.reset(count * sizeof(float) + shares.bytes());
        float* sums = memory.take<float>(count);
        shares.make(depth, sums, memory,
                    [&](int first, int rows, const bfloat16* panel, int vectors, float* sums) {
                        add_pixels(x, s, from + first, rows, panel, vectors, sums);
                    });
        for (int column = 0; column < s.out; column += WIDTH)
            shares.each_range(column, sums, [&](int begin, int rows) {
                for (int row = begin; row < begin + rows; row++)
                    for (int i = 0; i < WIDTH; i += LANES) {
                        bfloat16* at = y + std::size_t(from + row) * s.out + column + i;
                        const __m512 added = _mm512_loadu_ps(sums + row * WIDTH + i);
                        store(at, first(LANES), _mm512_add_ps(load(at, first(LANES)), added));
                    }
            });
    });
}
