// Work on many rows of something, in blocks.
#pragma once

#include <atomic>
#include <new>

#include "memory.h"
#include "vectors.h"

// Calls work(from, count, memory) for blocks of at most so many rows: as many blocks for each thread,
// of as many rows. Returns 0; 1 where memory was lacking.
template <typename Work>
int in_blocks(int rows, int most, int threads, Work work) {
    const int blocks = threads * std::max(1, pieces(rows, threads * most));
    const int size = std::max(1, pieces(rows, blocks));
    std::atomic<int> failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Memory memory;
#pragma omp for schedule(dynamic)
        for (int from = 0; from < rows; from += size) {
            try {
                work(from, std::min(size, rows - from), memory);
            } catch (const std::bad_alloc&) {
                failed = 1;
            }
        }
    }
    return failed;
}
