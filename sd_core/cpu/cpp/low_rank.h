// Low-rank adapters (Hu et al. 2021) of ranges of rows, as part of a product or added to it. The
// middle, of `rank` numbers a row, is rounded to bfloat16, all else is summed in float32. A row's
// numbers depend on its own adapters alone, and on no other row.
#pragma once

#include <vector>

#include "memory.h"
#include "products.h"

// An adapter of the rows [from, to) and of the columns [column, column + columns) of the result.
// down: panels of at most WIDTH, of the whole depth each; rank: a multiple of LANES, their columns.
// up: (columns / WIDTH, rank / 2, WIDTH, 2). factor: (columns,), of the layer's own product, or null,
// as in all but one share of rows.
struct Share {
    std::int32_t from, to, column, columns, rank;
    float scale;
    const bfloat16 *down, *up;
    const float* factor;
};

struct Shares {
    const Share* first;
    std::int32_t count;
};

// sums (rows, 16 · vectors) += x (rows, depth) times a panel as wide.
inline void add_products(int vectors, const bfloat16* x, int rows, std::size_t step,
                         const bfloat16* panel, int depth, float* sums) {
    switch (vectors) {
        case 1: return multiply<true, 1>(x, rows, step, panel, depth, sums);
        case 2: return multiply<true, 2>(x, rows, step, panel, depth, sums);
        case 3: return multiply<true, 3>(x, rows, step, panel, depth, sums);
        default: return multiply<true, 4>(x, rows, step, panel, depth, sums);
    }
}

// The shares that a block of rows has.
class BlockShares {
  public:
    // from: the block's first row; its other numbers of rows are counted from there.
    BlockShares(const Shares& shares, int from, int rows) {
        for (int i = 0; i < shares.count; i++) {
            const Share& share = shares.first[i];
            const int begin = std::max(share.from, from), end = std::min(share.to, from + rows);
            if (begin < end) parts_.push_back({&share, begin - from, end - begin, nullptr});
        }
    }

    bool none() const { return parts_.empty(); }

    // Memory that `make` takes.
    std::size_t bytes() const {
        std::size_t sum = 0;
        for (const Part& part : parts_) sum += 64 + sizeof(bfloat16) * part.rows * part.share->rank;
        return sum;
    }

    // Makes the middles. depth: of what they are sums of. add(from, rows, panel, vectors, sums) adds
    // the products of these rows to sums (rows, 16 · vectors), which has room for WIDTH columns.
    template <typename Add>
    void make(std::size_t depth, float* sums, Memory& memory, Add add) {
        for (Part& part : parts_) {
            const Share& share = *part.share;
            part.low = memory.take<bfloat16>(std::size_t(part.rows) * share.rank);
            const __m512 scale = _mm512_set1_ps(share.scale);
            for (int r = 0; r < share.rank; r += WIDTH) {
                const int vectors = std::min(WIDTH, share.rank - r) / LANES;
                const int width = vectors * LANES;
                std::fill_n(sums, std::size_t(part.rows) * width, 0.0f);
                add(part.from, part.rows, share.down + r * depth, vectors, sums);
                for (int row = 0; row < part.rows; row++)
                    for (int i = 0; i < width; i += LANES) {
                        const __m512 sum = _mm512_loadu_ps(sums + row * width + i);
                        store(part.low + row * share.rank + r + i, first(LANES),
                              _mm512_mul_ps(sum, scale));
                    }
            }
        }
    }

    // Adds to the layer's own sums (rows, WIDTH) of the panel that begins with this column.
    void add(int column, float* sums) const {
        for (const Part& part : parts_)
            if (part.share->factor && has(part, column)) multiply_own(part, column, sums);
        for (const Part& part : parts_)
            if (has(part, column)) add_up(part, column, sums);
    }

    // Calls each(from, rows) for the ranges of rows that have shares, when their sums (rows, WIDTH)
    // are there, those of the panel that begins with this column.
    template <typename Each>
    void each_range(int column, float* sums, Each each) const {
        for (std::size_t i = 0, end; i < parts_.size(); i = end) {
            const Part& range = parts_[i];
            float* own = sums + std::size_t(range.from) * WIDTH;
            std::fill_n(own, std::size_t(range.rows) * WIDTH, 0.0f);
            for (end = i; end < parts_.size() && parts_[end].from == range.from; end++)
                add_up(parts_[end], column, sums);
            each(range.from, range.rows);
        }
    }

  private:
    struct Part {
        const Share* share;
        int from, rows;
        bfloat16* low;  // (rows, rank), scaled
    };

    static bool has(const Part& part, int column) {
        return column >= part.share->column && column < part.share->column + part.share->columns;
    }

    static void multiply_own(const Part& part, int column, float* sums) {
        const float* factors = part.share->factor + column - part.share->column;
        for (int row = part.from; row < part.from + part.rows; row++)
            for (int i = 0; i < WIDTH; i += LANES) {
                float* own = sums + row * WIDTH + i;
                const __m512 factor = _mm512_loadu_ps(factors + i);
                _mm512_storeu_ps(own, _mm512_mul_ps(_mm512_loadu_ps(own), factor));
            }
    }

    static void add_up(const Part& part, int column, float* sums) {
        const Share& share = *part.share;
        const bfloat16* panel = share.up + std::size_t(column - share.column) * share.rank;
        multiply<true>(part.low, part.rows, share.rank, panel, share.rank,
                       sums + part.from * WIDTH);
    }

    std::vector<Part> parts_;
};
