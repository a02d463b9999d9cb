// Laying out the right operand of a product.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "bounds.h"
#include "kernels.h"

namespace halfbyte {
namespace {

constexpr size_t cache_line = 64;
// Below this many results added up in 16 bits, widening them costs more than multiplying in 16 bits from the start.
constexpr int worthwhile_steps = 4;

constexpr uint32_t each_byte = 0x01010101U;

// Four codes, less `half`, as signed bytes. They are below 2 * half, so no byte carries into the next; the high bit turns
// 128 + x into x.
inline uint32_t centred(uint32_t four, uint32_t half) { return (four + (128 - half) * each_byte) ^ (0x80U * each_byte); }

// Four codes of one column from `k` on; the bytes past K become 0.
inline uint32_t four_codes(const uint8_t* column, const RightSource& s, size_t k, uint32_t half) {
    uint8_t four[4];
    for (uint8_t& code : four) {
        code = k < s.k ? column[static_cast<ptrdiff_t>(k) * s.stride_k] : static_cast<uint8_t>(half);
        ++k;
    }
    uint32_t value;
    std::memcpy(&value, four, 4);
    return centred(value, half);
}

struct AsBytes {
    static constexpr size_t bytes = 4;
    static void put(uint32_t four, uint8_t* to) { std::memcpy(to, &four, 4); }
};

// For table.inl: the lower bits of all four, then the upper ones. A number from -2 to 1 has the same two lower bits in
// eight bits as in two.
struct AsPlanes {
    static constexpr size_t bytes = 2;
    static uint8_t plane(uint32_t four, int bit) {
        return static_cast<uint8_t>(((four >> bit) & each_byte) * 0x01020408U >> 24);
    }
    static void put(uint32_t four, uint8_t* to) {
        to[0] = plane(four, 0);
        to[1] = plane(four, 1);
    }
};

template <class As>
void pack_fours(const RightSource& s, PackedRight& into) {
    const size_t fours = into.steps * into.codes_of_step() / 4;
    const size_t width = static_cast<size_t>(into.kernels->tile_columns), whole = s.k / 4;
    const uint32_t half = 1U << (s.bits - 1);
    for (size_t panel = 0; panel < into.panels; ++panel) {
        uint8_t* to = into.data.data() + panel * into.panel_bytes();
        const size_t columns = into.columns_of(panel);
        if (columns < width) std::memset(to, 0, into.panel_bytes());
        for (size_t column = 0; column < columns; ++column) {
            const uint8_t* from = s.codes + static_cast<ptrdiff_t>(panel * width + column) * s.stride_n;
            uint8_t* own = to + column * As::bytes;
            for (size_t i = 0; i < fours; ++i, own += width * As::bytes) {
                uint32_t four;
                if (s.stride_k == 1 && i < whole) {
                    std::memcpy(&four, from + i * 4, 4);
                    four = centred(four, half);
                } else {
                    four = four_codes(from, s, i * 4, half);
                }
                As::put(four, own);
            }
        }
    }
}

void pack_words(const RightSource& s, PackedRight& into) {
    const size_t width = static_cast<size_t>(into.kernels->tile_columns);
    const int16_t half = static_cast<int16_t>(1 << (s.bits - 1));
    for (size_t panel = 0; panel < into.panels; ++panel) {
        int16_t* to = reinterpret_cast<int16_t*>(into.data.data() + panel * into.panel_bytes());
        const size_t columns = into.columns_of(panel);
        if (columns < width) std::memset(to, 0, into.panel_bytes());
        for (size_t step = 0; step < into.steps; ++step, to += width * 2) {
            const uint8_t* first = s.codes + static_cast<ptrdiff_t>(step * 2) * s.stride_k +
                                   static_cast<ptrdiff_t>(panel * width) * s.stride_n;
            const bool pair = step * 2 + 1 < s.k;
            const uint8_t* second = pair ? first + s.stride_k : first;
            if (s.stride_n == 1 && pair)
                // A loop that the compiler can turn into vectors.
                for (size_t column = 0; column < columns; ++column) {
                    to[column * 2] = static_cast<int16_t>(first[column] - half);
                    to[column * 2 + 1] = static_cast<int16_t>(second[column] - half);
                }
            else
                for (size_t column = 0; column < columns; ++column, first += s.stride_n, second += s.stride_n) {
                    to[column * 2] = static_cast<int16_t>(*first - half);
                    to[column * 2 + 1] = pair ? static_cast<int16_t>(*second - half) : int16_t{0};
                }
        }
    }
}

// sum over k of (a - za)(w - zw) = sum a w + za (k zw - sum w) - zw sum a, with w and zw both less 2^(bits - 1).
void pack_terms(const RightSource& s, PackedRight& into) {
    const size_t width = static_cast<size_t>(into.kernels->tile_columns), all = into.panels * width;
    const int32_t half = 1 << (s.bits - 1), last = 2 * half - 1;
    into.column_term.assign(all, 0);
    into.column_zero.assign(all, 0);
    into.zeros = false;
    into.largest = 0;
    if (s.stride_n == 1)
        for (size_t k = 0; k < s.k; ++k) {
            const uint8_t* row = s.codes + static_cast<ptrdiff_t>(k) * s.stride_k;
            for (size_t n = 0; n < s.n; ++n) into.column_term[n] += row[n];
        }
    else
        for (size_t n = 0; n < s.n; ++n) {
            const uint8_t* column = s.codes + static_cast<ptrdiff_t>(n) * s.stride_n;
            int32_t sum = 0;
            if (s.stride_k == 1)
                for (size_t k = 0; k < s.k; ++k) sum += column[k];
            else
                for (size_t k = 0; k < s.k; ++k) sum += column[static_cast<ptrdiff_t>(k) * s.stride_k];
            into.column_term[n] = sum;
        }
    for (size_t n = 0; n < s.n; ++n) {
        const int64_t zero = s.zeros[s.zero_per_column ? n : 0], k = static_cast<int64_t>(s.k);
        into.largest = std::max({into.largest, zero < 0 ? -zero : zero, zero < last ? last - zero : zero - last});
        // Wraps around where the terms do not fit; sums that fit come out right all the same.
        into.column_term[n] = static_cast<int32_t>(static_cast<uint32_t>(k * zero - into.column_term[n]));
        into.column_zero[n] = static_cast<int32_t>(static_cast<uint32_t>(half - zero));
        into.zeros = into.zeros || zero != half;
    }
}

}  // namespace

uint8_t* Buffer::ensure(size_t bytes) {
    if (start_ == nullptr || size_ < bytes) {
        // From the system as zeros, which takes no memory before it is touched.
        std::unique_ptr<uint8_t, Free> memory(static_cast<uint8_t*>(std::calloc(bytes + cache_line, 1)));
        if (memory == nullptr) throw std::bad_alloc();
        const size_t past = reinterpret_cast<uintptr_t>(memory.get()) % cache_line;
        start_ = memory.get() + (past == 0 ? 0 : cache_line - past);
        size_ = bytes;
        memory_ = std::move(memory);
    }
    return start_;
}

size_t PackedRight::tile_rows() const {
    // More rows read the weights less often, as long as the first-level cache holds their tables.
    if (layout == Layout::tables && k <= 512) return most_table_rows;
    return static_cast<size_t>(kernels->tile_rows);
}

size_t PackedRight::columns_of(size_t panel) const {
    const size_t width = static_cast<size_t>(kernels->tile_columns);
    return std::min(width, n - panel * width);
}

void pack(const RightSource& source, int left_bits, const KernelSet& kernels, PackedRight& into) {
    into.kernels = &kernels;
    into.n = source.n;
    into.k = source.k;
    into.bits = source.bits;
    into.left_bits = left_bits;
    if (kernels.tables != nullptr && source.bits == 2 && left_bits <= most_table_bits) {
        into.layout = Layout::tables;
        into.tiles = kernels.tables->tiles;
        into.steps_in_16_bits = static_cast<size_t>(table_steps(left_bits));
    } else {
        const int safe_steps = left_bits > 8 ? 0 : pair_steps(source.bits, left_bits);
        const bool words = left_bits > 8 || (kernels.sums_in_16_bits && safe_steps < worthwhile_steps);
        into.layout = words ? Layout::words : Layout::bytes;
        into.tiles = words ? kernels.words : kernels.bytes;
        into.steps_in_16_bits = static_cast<size_t>(safe_steps);
    }
    const size_t group = into.codes_of_step(), width = static_cast<size_t>(kernels.tile_columns);
    into.steps = (source.k + group - 1) / group;
    into.panels = (source.n + width - 1) / width;
    into.data.ensure(into.panels * into.panel_bytes());
    if (into.layout == Layout::tables)
        pack_fours<AsPlanes>(source, into);
    else
        (into.layout == Layout::words ? pack_words : pack_fours<AsBytes>)(source, into);
    pack_terms(source, into);
}

}  // namespace halfbyte
