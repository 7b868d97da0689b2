// What one thread of a kernel works in.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "vectors.h"

// It is kept from call to call, for new memory costs more than old.
class Memory {
  public:
    template <typename T>
    T* take(std::size_t count) {  // whole cache lines
        const std::size_t from = used_;
        used_ += pieces(count * sizeof(T), 64) * std::size_t{64};
        return reinterpret_cast<T*>(data_.get() + from);
    }

    void reset(std::size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        data_.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
        size_ = data_ ? bytes : 0;
        if (!data_) throw std::bad_alloc();
    }

  private:
    struct Free {
        void operator()(char* data) const { std::free(data); }
    };
    std::unique_ptr<char, Free> data_;
    std::size_t size_ = 0, used_ = 0;
};
