// What the steps share that multiply codes.
#pragma once

#include <stdexcept>
#include <vector>

#include "kernels.h"

namespace halfbyte {

inline Buffer& memory_of_thread(int which) {
    static thread_local Buffer memory[2];
    return memory[which];
}

inline void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

inline void require_product(const PackedRight& right, int bits, int32_t zero) {
    Left left;
    left.bits = bits;
    left.zero = zero;
    require(sums_fit(left, right), "the sums of these codes and zero points may pass 2^31");
}

inline void require_table(const std::vector<int16_t>& table) {
    require(table.empty() || table.size() == 256, "a table has 256 levels");
    for (int16_t level : table) require(level >= 0, "levels must be from 0 to 32767");
}

// Rows of a product whose left codes lie at `codes`, turned into levels first where there is a table.
struct RowsOfProduct {
    const PackedRight* right;
    int bits;
    int32_t zero;
    const std::vector<int16_t>* table;
    Epilogue epilogue;

    void run(const uint8_t* codes, size_t stride, size_t count, float* out, size_t out_stride) const {
        Left left;
        left.bits = bits;
        left.zero = zero;
        left.codes = codes;
        left.stride = stride;
        if (!table->empty()) {
            const size_t wide = (right->k + 31) / 32 * 32;
            int16_t* levels = reinterpret_cast<int16_t*>(memory_of_thread(0).ensure(count * wide * 2));
            for (size_t i = 0; i < count; ++i)
                right->kernels->rows.look_up(codes + i * stride, right->k, bits, table->data(), levels + i * wide);
            left.codes = nullptr;
            left.levels = levels;
            left.stride = wide;
        }
        multiply_rows(left, 0, count, *right, epilogue, out, out_stride);
    }
};

}  // namespace halfbyte
