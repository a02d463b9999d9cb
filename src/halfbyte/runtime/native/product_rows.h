// What the steps share that multiply codes.
#pragma once

#include <algorithm>
#include <cstring>
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

// For how wide left operands the right one is laid out: levels that fit into bytes are multiplied as codes of 8 bits are.
inline int bits_of_left(const int16_t* table, int bits) {
    if (table == nullptr) return bits;
    return *std::max_element(table, table + 256) < 256 ? 8 : 16;
}

// Rows that a thread takes at once: whole tiles of every instruction set but for the last rows, few enough that few heads
// keep many threads busy, and enough to be worth handing out.
struct PartsOfRows {
    static constexpr size_t most = 48;
    size_t rows;

    size_t count() const { return (rows + most - 1) / most; }
    size_t begin(size_t part) const { return part * most; }
    size_t end(size_t part) const { return std::min(rows, (part + 1) * most); }
};

// Rows of a product whose left codes lie at `codes`, turned into levels first where there is a table of 256 of them.
struct RowsOfProduct {
    const PackedRight* right;
    int bits;
    int32_t zero;
    const int16_t* table;  // null: the codes are multiplied as they are
    Epilogue epilogue;

    void run(const uint8_t* codes, size_t stride, size_t count, void* out, size_t out_stride) const {
        Left left;
        left.bits = bits;
        left.zero = zero;
        left.codes = codes;
        left.stride = stride;
        if (table != nullptr) look_up(left, count);
        multiply_rows(left, 0, count, *right, epilogue, out, out_stride);
    }

  private:
    void look_up(Left& left, size_t count) const {
        const RowKernels& rows = right->kernels->rows;
        const size_t wide = (right->k + 31) / 32 * 32, size = right->left_bits == 16 ? 2 : 1, beyond = wide - right->k;
        uint8_t* const memory = memory_of_thread(0).ensure(count * wide * size);
        int16_t* const levels = reinterpret_cast<int16_t*>(memory);
        for (size_t i = 0; i < count; ++i) {
            const uint8_t* from = left.codes + i * left.stride;
            if (size == 2)
                rows.look_up(from, right->k, bits, table, levels + i * wide);
            else
                rows.look_up_bytes(from, right->k, bits, table, memory + i * wide);
            std::memset(memory + (i * wide + right->k) * size, 0, beyond * size);
        }
        left.padded = true;
        left.codes = size == 1 ? memory : nullptr;
        left.levels = size == 2 ? levels : nullptr;
        left.bits = right->left_bits;
        left.stride = wide;
    }
};

}  // namespace halfbyte
