// Loops over rows, each defined operation by operation so that every instruction set gives the same bits. Included
// inside the namespace and the target of one instruction set; the compiler makes the vectors.

// Sums in double are taken in eight lanes (element i belongs to lane i mod 8), each in order, and the lanes joined as
// ((0+4)+(2+6)) + ((1+5)+(3+7)): a fixed order that vectors of any width can follow.
constexpr size_t sum_lanes = 8;

// To the nearest whole number, half to even.
HALFBYTE_INLINE float rounded(float x) {
#if defined(HALFBYTE_AVX2_OR_BETTER)
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

HALFBYTE_INLINE uint32_t prefix_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits >> 16;
}

void quantize_table(const float* __restrict x, size_t count, const PrefixTable& to, uint8_t* __restrict codes) {
    const PrefixTable by = to;
    for (size_t i = 0; i < count; ++i) codes[i] = by.codes[prefix_of(x[i] + by.shift)];
}

struct Moments {
    double mean, deviation;
};

HALFBYTE_INLINE Moments moments_of(const float* __restrict x, const Norm& norm) {
    const size_t n = norm.channels, whole = n / sum_lanes * sum_lanes;
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
    return {mean, __builtin_sqrt(joined(square) / static_cast<double>(n) + norm.eps)};
}

HALFBYTE_INLINE float normalised(float x, const Moments& by, float weight, float bias) {
    return static_cast<float>((static_cast<double>(x) - by.mean) / by.deviation * static_cast<double>(weight) +
                              static_cast<double>(bias));
}

void layer_norm(const float* __restrict x, size_t rows, const Norm& norm, float* __restrict out) {
    const size_t n = norm.channels;
    const float* __restrict weight = norm.weight;
    const float* __restrict bias = norm.bias;
    for (size_t row = 0; row < rows; ++row, x += n, out += n) {
        const Moments moments = moments_of(x, norm);
        for (size_t i = 0; i < n; ++i) out[i] = normalised(x[i], moments, weight[i], bias[i]);
    }
}

void norm_quantize(const float* __restrict x, size_t rows, const Norm& norm, const Uniform& to, float* __restrict scratch,
                   uint8_t* __restrict codes) {
    const size_t n = norm.channels;
    for (size_t row = 0; row < rows; ++row, x += n, codes += n) {
        layer_norm(x, 1, norm, scratch);
        quantize(scratch, n, to, codes);
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

void gelu_quantize(const float* __restrict x, size_t count, const Uniform& to, uint8_t* __restrict codes) {
    const Uniform by = to;
    for (size_t i = 0; i < count; ++i) codes[i] = code_of(gelu_of(x[i]), by);
}

// Pieces that stay in the first-level cache between the function and its quantizer.
template <class Encode>
HALFBYTE_INLINE void gelu_by_pieces(const float* x, size_t count, const Encode& encode, uint8_t* codes) {
    float values[512];
    for (size_t done = 0; done < count; done += 512) {
        const size_t few = count - done < 512 ? count - done : 512;
        gelu(x + done, few, values);
        encode(values, few, codes + done);
    }
}

void gelu_quantize_table(const float* x, size_t count, const PrefixTable& to, uint8_t* codes) {
    gelu_by_pieces(x, count, [&](const float* v, size_t few, uint8_t* own) { quantize_table(v, few, to, own); }, codes);
}

void add_rows(const float* __restrict x, const float* __restrict y, size_t count, float* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = x[i] + y[i];
}

// x * scale + shift, then + y, then ReLU, each where it is asked for, and each rounded.
template <bool scaled, bool added, bool relu>
void map_as(const Map& m, size_t begin, size_t rows, float* __restrict out) {
    const size_t n = m.columns;
    const float* __restrict scale = m.scale;
    const float* __restrict shift = m.shift;
    const float* x = m.x + begin * n;
    const float* y = added ? m.y + begin * n : nullptr;
    for (size_t row = 0; row < rows; ++row, x += n, out += n) {
        for (size_t i = 0; i < n; ++i) {
            float value = x[i];
            if (scaled) value = value * scale[i] + shift[i];
            if (added) value = value + y[i];
            if (relu) value = value <= 0.0F ? 0.0F : value;
            out[i] = value;
        }
        if (added) y += n;
    }
}

void map(const Map& m, size_t begin, size_t rows, float* out) {
    Map all = m;
    if (m.scale != nullptr) {
        if (m.y != nullptr) return (m.relu ? map_as<true, true, true> : map_as<true, true, false>)(m, begin, rows, out);
        return (m.relu ? map_as<true, false, true> : map_as<true, false, false>)(m, begin, rows, out);
    }
    // Without columns of their own the rows are one.
    all.x += begin * m.columns;
    all.columns = rows * m.columns;
    if (m.y == nullptr) return (m.relu ? map_as<false, false, true> : map_as<false, false, false>)(all, 0, 1, out);
    all.y += begin * m.columns;
    (m.relu ? map_as<false, true, true> : map_as<false, true, false>)(all, 0, 1, out);
}

void widen(const uint8_t* __restrict codes, size_t count, int16_t* __restrict out) {
    for (size_t i = 0; i < count; ++i) out[i] = codes[i];
}

// table[code] for codes of so many bits.
void look_up(const uint8_t* __restrict codes, size_t count, int bits, const int16_t* __restrict table,
             int16_t* __restrict out) {
    size_t i = 0;
#if defined(HALFBYTE_AVX2_OR_BETTER)
    if (bits <= 4) {
        // Sixteen levels are two tables of bytes, each in one register.
        uint8_t bytes[2][16] = {};
        for (int code = 0; code < 1 << bits; ++code) {
            bytes[0][code] = static_cast<uint8_t>(table[code] & 255);
            bytes[1][code] = static_cast<uint8_t>(table[code] >> 8);
        }
        const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes[0])));
        const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes[1])));
        for (; i + 32 <= count; i += 32) {
            const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
            const __m256i l = _mm256_shuffle_epi8(low, at), h = _mm256_shuffle_epi8(high, at);
            const __m256i even = _mm256_unpacklo_epi8(l, h), odd = _mm256_unpackhi_epi8(l, h);
            __m256i* to = reinterpret_cast<__m256i*>(out + i);
            _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
            _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
        }
    }
#endif
    static_cast<void>(bits);
    for (; i < count; ++i) out[i] = table[codes[i]];
}

void look_up_bytes(const uint8_t* __restrict codes, size_t count, int bits, const int16_t* __restrict table,
                   uint8_t* __restrict out) {
    uint8_t levels[256];
    const size_t all = size_t{1} << bits;
    for (size_t code = 0; code < all; ++code) levels[code] = static_cast<uint8_t>(table[code]);
    size_t i = 0;
#if defined(HALFBYTE_AVX2_OR_BETTER)
    if (bits <= 4) {
        for (size_t code = all; code < 16; ++code) levels[code] = 0;
        const __m256i sixteen = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
        for (; i + 32 <= count; i += 32) {
            const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_shuffle_epi8(sixteen, at));
        }
    }
#endif
    for (; i < count; ++i) out[i] = levels[codes[i]];
}

// Of at most 2^23 codes.
int32_t sum_codes(const uint8_t* __restrict codes, size_t count) {
    int32_t sum = 0;
    size_t i = 0;
#if defined(HALFBYTE_AVX2_OR_BETTER)
    __m256i eights = _mm256_setzero_si256();
    for (; i + 32 <= count; i += 32) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
        eights = _mm256_add_epi64(eights, _mm256_sad_epu8(at, _mm256_setzero_si256()));
    }
    uint64_t part[4];
    std::memcpy(part, &eights, sizeof(part));
    sum = static_cast<int32_t>(part[0] + part[1] + part[2] + part[3]);
#endif
    for (; i < count; ++i) sum += codes[i];
    return sum;
}

// Of levels from 0 on.
int64_t sum_levels(const int16_t* __restrict levels, size_t count) {
    constexpr size_t piece = 32768;  // so many levels stay below 2^31
    int64_t sum = 0;
    for (size_t done = 0; done < count; done += piece) {
        int32_t part = 0;
        for (size_t i = done; i < (count - done < piece ? count : done + piece); ++i) part += levels[i];
        sum += part;
    }
    return sum;
}

#include "softmax.inl"

RowKernels row_kernels() {
    return {quantize, quantize_table, layer_norm, softmax, gelu, add_rows, widen, look_up, look_up_bytes, sum_codes, sum_levels,
            softmax_quantize, softmax_quantize_table, gelu_quantize, gelu_quantize_table, norm_quantize, map};
}
