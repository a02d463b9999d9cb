// Softmax over rows: of the product x * factor (in float32), in double, rounded once to float32.

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

constexpr size_t row_piece = 1024;

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

// With a quantizer behind it, row after row so that a row's values stay in the first-level cache.
template <class Encode>
HALFBYTE_INLINE void softmax_codes(const float* x, size_t rows, size_t columns, float factor, uint8_t* codes,
                                   const Encode& encode) {
    float values[row_piece];
    for (size_t row = 0; row < rows; ++row, x += columns, codes += columns) {
        if (columns <= row_piece) {
            softmax(x, 1, columns, factor, values);
            encode(values, columns, codes);
            continue;
        }
        const double top = static_cast<double>(largest_of(x, columns, factor));
        const double sum = sum_of_powers(x, columns, factor, top, nullptr);
        for (size_t i = 0; i < columns; ++i) {
            values[0] = static_cast<float>(exponential(static_cast<double>(x[i] * factor) - top) / sum);
            encode(values, 1, codes + i);
        }
    }
}

void softmax_quantize(const float* x, size_t rows, size_t columns, float factor, const Uniform& to, uint8_t* codes) {
    softmax_codes(x, rows, columns, factor, codes,
                  [&](const float* values, size_t count, uint8_t* out) { quantize(values, count, to, out); });
}

void softmax_quantize_table(const float* x, size_t rows, size_t columns, float factor, const PrefixTable& to,
                            uint8_t* codes) {
    softmax_codes(x, rows, columns, factor, codes,
                  [&](const float* values, size_t count, uint8_t* out) { quantize_table(values, count, to, out); });
}
