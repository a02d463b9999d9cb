// Products with 2-bit weights by looking sums up, for AVX2: for every row and every four codes of K a table of the sums of
// all 16 subsets of them. The weights, less 2, are two planes of bits, weight = low - 2 * high, and the four bits of a plane
// choose a sum: one shuffle of bytes finds what 128 products with single bits add up to. A step is sixteen codes: of
// the left operand four tables for one row after the other, of the right one four vectors of indices, in each the two
// planes of a column side by side.

static_assert(tile_columns * 2 == sizeof(V), "a vector of indices holds two planes of all columns");

HALFBYTE_INLINE V spread_sixteen(const uint8_t* at) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

// Four sums of a step fit into 8 bits, both planes of all `steps` into 16. Apart from its caller, whose 32-bit sums would
// take the registers.
template <int rows>
HALFBYTE_APART void add_up_tables(const uint8_t* left, const uint8_t* right, size_t steps, int16_t* to) {
    const V weights = spread(static_cast<int32_t>(0xFE01FE01U));  // 1 and -2, in turn
    V sums[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) sums[i] = spread(0);
    for (size_t step = 0; step < steps; ++step, left += rows * table_bytes, right += 4 * sizeof(V)) {
        V index[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) index[j] = load(reinterpret_cast<const int32_t*>(right + j * sizeof(V)));
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            V found[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
                found[j] = _mm256_shuffle_epi8(spread_sixteen(left + i * table_bytes + j * 16), index[j]);
            const V four = _mm256_add_epi8(_mm256_add_epi8(found[0], found[1]), _mm256_add_epi8(found[2], found[3]));
            add_pairs(sums[i], _mm256_maddubs_epi16(four, weights));
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) _mm256_store_si256(reinterpret_cast<V*>(to) + i, sums[i]);
}

template <int rows>
void tile_tables(const Tile& t) {
    V sums[rows][vectors];
    const uint8_t* left = t.left;
    const uint8_t* right = t.right;
    size_t done = 0;
    do {
        const size_t steps = t.steps - done < t.steps_in_16_bits ? t.steps - done : t.steps_in_16_bits;
        alignas(V) int16_t narrow[rows * tile_columns];
        add_up_tables<rows>(left, right, steps, narrow);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) {
                const __m128i* at = reinterpret_cast<const __m128i*>(narrow + i * tile_columns + j * lanes);
                const V wide = _mm256_cvtepi16_epi32(_mm_load_si128(at));
                sums[i][j] = done == 0 ? wide : add(sums[i][j], wide);
            }
        done += steps;
        left += steps * rows * table_bytes;
        right += steps * 4 * sizeof(V);
    } while (done < t.steps);
    finish<rows>(sums, t);
}

// Indices into eight bytes for the first four codes of a lane, and 8 more for the next four. -1 stays: it gives 0.
HALFBYTE_INLINE V indices(int32_t first, int32_t second, int32_t third, int32_t fourth) {
    const V both = _mm256_setr_epi32(first, second, third, fourth, first, second, third, fourth);
    const V group = _mm256_setr_epi64x(0, 0, 0x0808080808080808, 0x0808080808080808);
    return _mm256_or_si256(_mm256_add_epi8(both, group), _mm256_cmpgt_epi8(_mm256_setzero_si256(), both));
}

void fill_tables(const uint8_t* codes, size_t stride, size_t k, size_t rows, uint8_t* tables) {
    // Of a, a + b, b, b + c, c, c + d, d, ...: the sums of subsets of a and b, and of c and d, for the subsets of all.
    const V of_ab = indices(0x010200FF, 0x010200FF, 0x010200FF, 0x010200FF);
    const V of_cd = indices(-1, 0x04040404, 0x06060606, 0x05050505);
    for (size_t row = 0; row < rows; ++row, codes += stride, tables += table_bytes) {
        const auto fill = [of_ab, of_cd](const uint8_t* sixteen, uint8_t* to) {
            const V x = spread_sixteen(sixteen), sums = _mm256_add_epi8(x, _mm256_srli_si256(x, 1));
            const V parts[2] = {_mm256_unpacklo_epi8(x, sums), _mm256_unpackhi_epi8(x, sums)};
            for (int i = 0; i < 2; ++i) {
                const V ab = _mm256_shuffle_epi8(parts[i], of_ab), cd = _mm256_shuffle_epi8(parts[i], of_cd);
                _mm256_store_si256(reinterpret_cast<V*>(to) + i, _mm256_add_epi8(ab, cd));
            }
        };
        uint8_t* to = tables;
        size_t from = 0;
        for (; from + 16 <= k; from += 16, to += rows * table_bytes) fill(codes + from, to);
        if (from < k) {
            uint8_t last[16] = {};
            std::memcpy(last, codes + from, k - from);
            fill(last, to);
        }
    }
}

constexpr TileFunction table_tiles[] = {tile_tables<1>, tile_tables<2>, tile_tables<3>, tile_tables<4>,
                                        tile_tables<5>, tile_tables<6>, tile_tables<7>, tile_tables<8>};
constexpr TableKernels tables{fill_tables, table_tiles};
