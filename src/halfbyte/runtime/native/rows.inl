// Loops over rows, each defined operation by operation so that every instruction set gives the same bits. Included
// inside the namespace and the target of one instruction set; the compiler makes the vectors.

// Sums in double are taken in eight lanes (element i belongs to lane i mod 8), each in order, and the lanes joined as
// ((0+4)+(2+6)) + ((1+5)+(3+7)): a fixed order that vectors of any width can follow.
constexpr size_t sum_lanes = 8;

// To the nearest whole number, half to even.
HALFBYTE_INLINE float rounded(float x) {
#if defined(HALFBYTE_ROUNDS)
    return __builtin_rintf(x);
#else
    // Without an instruction for it: adding and taking away 2^23 rounds what is smaller; larger floats are whole.
    constexpr float whole = 8388608.0F;
    const float size = __builtin_fabsf(x), near = (size + whole) - whole;
    return __builtin_copysignf(size < whole ? near : size, x);
#endif
}

HALFBYTE_INLINE double joined(const double (&lane)[sum_lanes]) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

HALFBYTE_INLINE uint8_t code_of(float x, const Uniform& to) {
    const float steps = rounded((x - to.offset) / to.scale) + to.zero;
    // Written so that NaN fails the first comparison.
    const float low = steps > 0.0F ? steps : 0.0F;
    return static_cast<uint8_t>(static_cast<int32_t>(low < to.last ? low : to.last));
}

void quantize(const float* __restrict x, size_t count, const Uniform& to, uint8_t* __restrict codes) {
    const Uniform by = to;
    for (size_t i = 0; i < count; ++i) codes[i] = code_of(x[i], by);
}

void quantize_table(const float* __restrict x, size_t count, float shift, const uint8_t* __restrict table,
                    uint8_t* __restrict codes) {
    for (size_t i = 0; i < count; ++i) {
        const float shifted = x[i] + shift;
        uint32_t bits;
        std::memcpy(&bits, &shifted, 4);
        codes[i] = table[bits >> 16];
    }
}

void layer_norm(const float* __restrict x, size_t rows, const Norm& norm, float* __restrict out) {
    const size_t n = norm.channels, whole = n / sum_lanes * sum_lanes;
    const float* __restrict weight = norm.weight;
    const float* __restrict bias = norm.bias;
    for (size_t row = 0; row < rows; ++row, x += n, out += n) {
        double lane[sum_lanes] = {};
        for (size_t i = 0; i < whole; i += sum_lanes)
            for (size_t j = 0; j < sum_lanes; ++j) lane[j] += static_cast<double>(x[i + j]);
        for (size_t i = whole; i < n; ++i) lane[i - whole] += static_cast<double>(x[i]);
        const double mean = joined(lane) / static_cast<double>(n);
        double square[sum_lanes] = {};
        for (size_t i = 0; i < whole; i += sum_lanes)
            for (size_t j = 0; j < sum_lanes; ++j) {
                const double d = static_cast<double>(x[i + j]) - mean;
                square[j] += d * d;
            }
        for (size_t i = whole; i < n; ++i) {
            const double d = static_cast<double>(x[i]) - mean;
            square[i - whole] += d * d;
        }
        const double deviation = __builtin_sqrt(joined(square) / static_cast<double>(n) + norm.eps);
        for (size_t i = 0; i < n; ++i)
            out[i] = static_cast<float>((static_cast<double>(x[i]) - mean) / deviation * static_cast<double>(weight[i]) +
                                        static_cast<double>(bias[i]));
    }
}

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

// softmax(x * factor) over rows of `columns`: the product in float32, the rest in double, rounded once to float32.
void softmax(const float* __restrict x, size_t rows, size_t columns, float factor, float* __restrict out) {
    constexpr size_t piece = 512;
    double powers[piece];
    const size_t whole = columns / sum_lanes * sum_lanes;
    for (size_t row = 0; row < rows; ++row, x += columns, out += columns) {
        float largest = x[0] * factor;
        for (size_t i = 0; i < columns; ++i) {
            const float value = x[i] * factor;
            largest = largest > value ? largest : value;
        }
        const double top = static_cast<double>(largest);
        double lane[sum_lanes] = {};
        // Short rows, the usual ones, keep their powers; longer ones compute them twice.
        const bool kept = columns <= piece;
        for (size_t i = 0; i < whole; i += sum_lanes)
            for (size_t j = 0; j < sum_lanes; ++j) {
                const double power = exponential(static_cast<double>(x[i + j] * factor) - top);
                if (kept) powers[i + j] = power;
                lane[j] += power;
            }
        for (size_t i = whole; i < columns; ++i) {
            const double power = exponential(static_cast<double>(x[i] * factor) - top);
            if (kept) powers[i] = power;
            lane[i - whole] += power;
        }
        const double sum = joined(lane);
        if (kept)
            for (size_t i = 0; i < columns; ++i) out[i] = static_cast<float>(powers[i] / sum);
        else
            for (size_t i = 0; i < columns; ++i)
                out[i] = static_cast<float>(exponential(static_cast<double>(x[i] * factor) - top) / sum);
    }
}

HALFBYTE_INLINE float gelu_of(float x) {
    // The rational function of halfbyte.layers.activation, in its order.
    constexpr float clip = 5.599999904632568F;
    const float low = x < -clip ? -clip : x;
    const float c = low > clip ? clip : low;
    const float s = c * c;
    float p = 2.1710528486096337e-08F;
    p = p * s + 6.5905928749998566e-06F;
    p = p * s + 0.00019015652651432902F;
    p = p * s + 0.004805426578968763F;
    p = p * s + 0.03584729880094528F;
    p = p * s + 0.39894190430641174F;
    float q = 1.1851528824990964e-06F;
    q = q * s + 8.101142157102004e-05F;
    q = q * s + 0.00200336123816669F;
    q = q * s + 0.02980402484536171F;
    q = q * s + 0.2565186023712158F;
    q = q * s + 1.0F;
    return (p * c / q + 0.5F) * x;
}

void gelu(const float* __restrict x, size_t count, float* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = gelu_of(x[i]);
}

void add_rows(const float* __restrict x, const float* __restrict y, size_t count, float* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = x[i] + y[i];
}

void widen(const uint8_t* __restrict codes, size_t count, int16_t* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = codes[i];
}

void look_up(const uint8_t* __restrict codes, size_t count, const int16_t* __restrict table, int16_t* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = table[codes[i]];
}

int32_t sum_codes(const uint8_t* __restrict codes, size_t count) {
    int32_t sum = 0;
    for (size_t i = 0; i < count; ++i) sum += codes[i];
    return sum;
}

RowKernels row_kernels() {
    return {quantize, quantize_table, layer_norm, softmax, gelu, add_rows, widen, look_up, sum_codes};
}
