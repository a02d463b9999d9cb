// Softmax over rows: of the product x * factor (in float32), in double, rounded once to float32. With a quantizer behind
// it most codes are found in float32, and only where that could be wrong in double.

// e^x for x <= 0, relative error below 1e-15; 0 below -700, which float32 cannot tell from it.
HALFBYTE_INLINE double exponential(double x) {
    constexpr double shifter = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
    constexpr double log2_e = 1.4426950408889634, ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
    const double shifted = x * log2_e + shifter;
    const double n = shifted - shifter;
    const double r = (x - n * ln2_high) - n * ln2_low;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t exponent, bits;
    std::memcpy(&exponent, &shifted, 8);
    std::memcpy(&bits, &p, 8);
    bits += exponent << 52;
    std::memcpy(&p, &bits, 8);
    return x < -700.0 ? 0.0 : p;
}

// Each lane on its own, so that a compiler may use vectors: which of equal floats is taken does not matter.
HALFBYTE_INLINE float largest_of(const float* __restrict x, size_t columns, float factor) {
    constexpr size_t lanes_of_row = 16;
    float lane[lanes_of_row];
    for (size_t j = 0; j < lanes_of_row; ++j) lane[j] = x[0] * factor;
    size_t i = 0;
    for (; i + lanes_of_row <= columns; i += lanes_of_row)
        for (size_t j = 0; j < lanes_of_row; ++j) {
            const float value = x[i + j] * factor;
            lane[j] = lane[j] > value ? lane[j] : value;
        }
    float largest = lane[0];
    for (size_t j = 1; j < lanes_of_row; ++j) largest = largest > lane[j] ? largest : lane[j];
    for (; i < columns; ++i) largest = largest > x[i] * factor ? largest : x[i] * factor;
    return largest;
}

constexpr size_t row_piece = 512;

// The sum of a row's powers; they are kept in `powers` unless that is null.
HALFBYTE_INLINE double sum_of_powers(const float* __restrict x, size_t columns, float factor, double top,
                                     double* __restrict powers) {
    double lane[sum_lanes] = {};
    double eight[sum_lanes];
    const size_t whole = columns / sum_lanes * sum_lanes;
    for (size_t i = 0; i < whole; i += sum_lanes) {
        double* to = powers != nullptr ? powers + i : eight;
        for (size_t j = 0; j < sum_lanes; ++j) {
            const double power = exponential(static_cast<double>(x[i + j] * factor) - top);
            to[j] = power;
            lane[j] += power;
        }
    }
    for (size_t i = whole; i < columns; ++i) {
        const double power = exponential(static_cast<double>(x[i] * factor) - top);
        if (powers != nullptr) powers[i] = power;
        lane[i - whole] += power;
    }
    return joined(lane);
}

void softmax(const float* __restrict x, size_t rows, size_t columns, float factor, float* __restrict out) {
    double powers[row_piece];
    for (size_t row = 0; row < rows; ++row, x += columns, out += columns) {
        const double top = static_cast<double>(largest_of(x, columns, factor));
        // Short rows, the usual ones, keep their powers; longer ones compute them twice.
        const bool kept = columns <= row_piece;
        const double sum = sum_of_powers(x, columns, factor, top, kept ? powers : nullptr);
        if (kept)
            for (size_t i = 0; i < columns; ++i) out[i] = static_cast<float>(powers[i] / sum);
        else
            for (size_t i = 0; i < columns; ++i)
                out[i] = static_cast<float>(exponential(static_cast<double>(x[i] * factor) - top) / sum);
    }
}

// e^x in float32 for lowest_power <= x <= 0, relative error below 2^-21.
HALFBYTE_INLINE float rough_exponential(float x) {
    constexpr float shifter = 12582912.0F;  // 1.5 * 2^23
    const float shifted = x * 1.44269504F + shifter;
    const float n = shifted - shifter;
    const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
    float p = 1.0F / 5040.0F;
    p = p * r + 1.0F / 720.0F;
    p = p * r + 1.0F / 120.0F;
    p = p * r + 1.0F / 24.0F;
    p = p * r + 1.0F / 6.0F;
    p = p * r + 0.5F;
    p = p * r + 1.0F;
    p = p * r + 1.0F;
    uint32_t exponent, bits;
    std::memcpy(&exponent, &shifted, 4);
    std::memcpy(&bits, &p, 4);
    bits += exponent << 23;
    std::memcpy(&p, &bits, 4);
    return p;
}

// A quotient found in float32 is wrong by less than this share: the difference of two logits of at most 60 is rounded by
// 2^-19, which counts twice (in the power and in the sum); the exponential adds 2 * 2^-21, the sum of 512 powers in 16
// lanes 47 * 2^-24, three roundings 3 * 2^-24. Together 8.5e-6.
constexpr float doubt = 1.0F / 65536.0F;
constexpr float lowest_power = -60.0F;

HALFBYTE_INLINE uint32_t prefix_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits >> 16;
}

// How a quotient becomes a code, by way of a key that does not decrease as the quotient grows. An interval as narrow as
// twice the doubt holds at most two prefixes, so that of a table, too, its ends tell all codes in it.
struct ByTable {
    const uint8_t* table;
    float shift;
    using Key = uint16_t;
    HALFBYTE_INLINE Key key(float x) const { return static_cast<Key>(prefix_of(x)); }
    HALFBYTE_INLINE uint8_t code(Key k) const { return table[k]; }
    HALFBYTE_INLINE uint8_t exact(float x) const { return table[prefix_of(x + shift)]; }
    HALFBYTE_INLINE bool monotone() const { return shift == 0.0F; }
};
struct ByStep {
    Uniform to;
    using Key = uint8_t;
    HALFBYTE_INLINE Key key(float x) const { return code_of(x, to); }
    HALFBYTE_INLINE uint8_t code(Key k) const { return k; }
    HALFBYTE_INLINE uint8_t exact(float x) const { return code_of(x, to); }
    HALFBYTE_INLINE bool monotone() const { return true; }
};

// Fills `low` and `high` with the keys of the least and largest that each quotient can be; false: the row has none.
template <class By>
HALFBYTE_INLINE bool rough_keys(const float* __restrict x, size_t columns, float factor, float top, const By& by,
                                typename By::Key* __restrict low, typename By::Key* __restrict high) {
    constexpr size_t lanes_of_row = 16;
    float powers[row_piece + lanes_of_row];
    float lane[lanes_of_row] = {};
    float least = 0.0F;
    for (size_t i = 0; i < columns; ++i) {
        const float below = x[i] * factor - top;
        powers[i] = below < lowest_power ? 0.0F : rough_exponential(below);
    }
    const size_t padded = (columns + lanes_of_row - 1) / lanes_of_row * lanes_of_row;
    for (size_t i = columns; i < padded; ++i) powers[i] = 0.0F;
    for (size_t i = 0; i < padded; i += lanes_of_row)
        for (size_t j = 0; j < lanes_of_row; ++j) lane[j] += powers[i + j];
    for (size_t j = 0; j < lanes_of_row; ++j) least += lane[j];
    if (!(least < 1e30F)) return false;
    const float share = 1.0F / least;
    for (size_t i = 0; i < columns; ++i) {
        const float p = powers[i] * share;
        low[i] = by.key(p * (1.0F - doubt));
        // What was too small for the rough exponential may be anything.
        high[i] = by.key(p > 0.0F ? p * (1.0F + doubt) : 2.0F);
    }
    return true;
}

template <class By>
void softmax_codes(const float* __restrict x, size_t rows, size_t columns, float factor, const By& by,
                   uint8_t* __restrict codes) {
    typename By::Key low[row_piece], high[row_piece];
    for (size_t row = 0; row < rows; ++row, x += columns, codes += columns) {
        const float top = largest_of(x, columns, factor);
        const bool rough = columns <= row_piece && by.monotone() && rough_keys(x, columns, factor, top, by, low, high);
        if (rough)
            for (size_t i = 0; i < columns; ++i) codes[i] = by.code(low[i]);
        double sum = 0.0;
        for (size_t i = 0; i < columns; ++i) {
            // Doubtful quotients are rare: sixteen at a time are found to have none.
            constexpr size_t many = 16;
            if (rough && i + many <= columns && std::memcmp(low + i, high + i, many * sizeof(low[0])) == 0) {
                i += many - 1;
                continue;
            }
            if (rough && low[i] == high[i]) continue;
            const float value = x[i] * factor;
            if (rough && by.code(low[i]) == by.code(high[i]) && value - top >= lowest_power) continue;
            if (sum == 0.0) sum = sum_of_powers(x, columns, factor, static_cast<double>(top), nullptr);
            const double power = exponential(static_cast<double>(value) - static_cast<double>(top));
            codes[i] = by.exact(static_cast<float>(power / sum));
        }
    }
}

void softmax_quantize(const float* x, size_t rows, size_t columns, float factor, const Uniform& to, uint8_t* codes) {
    softmax_codes(x, rows, columns, factor, ByStep{to}, codes);
}

void softmax_quantize_table(const float* x, size_t rows, size_t columns, float factor, float shift,
                            const uint8_t* table, uint8_t* codes) {
    softmax_codes(x, rows, columns, factor, ByTable{table, shift}, codes);
}
