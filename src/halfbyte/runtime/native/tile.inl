// The register tile, for any instruction set that defines `V` (a vector of 32-bit integers), `lanes`, `load`, `store`,
// `spread`, `add`, `multiply`, `to_float`... Included inside the namespace and the target of that instruction set.

constexpr int vectors = tile_columns / lanes;

// What a tile holds at the end: int32 sums, corrected for the zero points, scaled once, stored once.
template <int rows>
HALFBYTE_INLINE void finish(V (&sums)[rows][vectors], const Tile& t) {
    V terms[vectors];
    for (int j = 0; j < vectors; ++j) terms[j] = multiply(spread(t.za), load(t.column_term + j * lanes));
    if (t.row_sums != nullptr) {
        V zeros[vectors];
        for (int j = 0; j < vectors; ++j) zeros[j] = load(t.column_zero + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) sums[i][j] = add(sums[i][j], multiply(spread(t.row_sums[i]), zeros[j]));
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) {
            const V sum = add(sums[i][j], terms[j]);
            const size_t at = i * t.out_stride + j * lanes;
            if (t.scale == nullptr) {
                store(static_cast<int32_t*>(t.out) + at, sum);
            } else {
                F value = multiply_float(to_float(sum), load_float(t.scale + j * lanes));
                if (t.bias != nullptr) value = add_float(value, load_float(t.bias + j * lanes));
                store_float(static_cast<float*>(t.out) + at, value);
            }
        }
    }
}

// Products that are added up in 32 bits at once, by `dot(sum, left, right)`.
template <class Dot, int rows>
void tile_direct(const Tile& t) {
    V sums[rows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) sums[i][j] = spread(0);
    const uint8_t* left = t.left;
    const uint8_t* right = t.right;
    for (size_t step = 0; step < t.steps; ++step, left += 4, right += tile_columns * 4) {
        V b[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; ++j) b[j] = load(reinterpret_cast<const int32_t*>(right) + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            int32_t four;
            std::memcpy(&four, left + i * t.left_stride, 4);
            const V a = spread(four);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) Dot::dot(sums[i][j], a, b[j]);
        }
    }
    finish<rows>(sums, t);
}
