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
    // What is stored may be the tile itself for all that the compiler knows, so it would read its members again each time.
    const size_t stride = t.out_stride;
    const float *const scale = t.scale, *const bias = t.bias;
    if (scale == nullptr) {
        int32_t* const out = static_cast<int32_t*>(t.out);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) store(out + i * stride + j * lanes, add(sums[i][j], terms[j]));
        return;
    }
    float* const out = static_cast<float*>(t.out);
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
        const F factor = load_float(scale + j * lanes);
        const F shift = bias == nullptr ? spread_float(-0.0F) : load_float(bias + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
            store_float(out + i * stride + j * lanes,
                        add_float(multiply_float(to_float(add(sums[i][j], terms[j])), factor), shift));
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
