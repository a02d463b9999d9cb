// Codes found roughly, and settled exactly where the rough way could be wrong. What becomes of a value is defined in double
// or with divisions; a code only needs to know between which two borders the value lies, and float32 with multiplications and
// fused additions tells that but for values next to a border. How near is bounded in each function.
//
// Included behind rows.inl, for instruction sets with vectors `F` of `lanes` floats, masks `M` of them and the operations on
// both. greater(x, y) and lesser(x, y) are y where either is NaN.

// Beyond this a bound is of no use.
constexpr float most_doubt = 0.125F;
constexpr float unit = 1.0F / 16777216.0F;  // the largest relative error of one rounding, 2^-24

// A uniform quantizer's codes, from places: (value - offset) / scale + zero, not yet rounded and clipped.
struct Places {
    explicit Places(const Uniform& to)
        : by(1.0F / to.scale), start(to.zero - to.offset * by),
          size(to.last + 1.0F + __builtin_fabsf(to.zero) + __builtin_fabsf(to.offset * by)),
          usable(by < 1e30F && by > 1e-30F && size < 1e6F), last(spread_float(to.last)) {}

    // Codes of places that are at most by `doubt` wrong where they are not clipped; the lanes that may be wrong.
    HALFBYTE_INLINE M settle(F place, F clear, V& codes) const {
        const F kept = lesser(greater(place, spread_float(0.0F)), last);
        codes = to_whole(kept);
        return above(magnitude(subtract_float(kept, to_float(codes))), clear);
    }
    // So far from a whole number a place may be.
    static HALFBYTE_INLINE F clear_of(float doubt) { return spread_float(0.5F - doubt); }

    float by, start;
    float size;  // bounds what a place that is not clipped is the sum of
    bool usable;
    F last;
};

void rough_quantize(const float* __restrict x, size_t count, const Uniform& to, uint8_t* __restrict codes) {
    const Places places(to);
    // Roundings: of `by`, three of `start`, of the sum; there of the difference and the quotient.
    const float doubt = 8.0F * unit * places.size;
    size_t i = 0;
    if (places.usable && doubt < most_doubt) {
        const F by = spread_float(places.by), start = spread_float(places.start), clear = Places::clear_of(doubt);
        for (; i + lanes <= count; i += lanes) {
            V found;
            const bool wrong = any(places.settle(fused(load_float(x + i), by, start), clear, found));
            store_bytes(codes + i, found);
            if (wrong) quantize(x + i, lanes, to, codes + i);
        }
    }
    quantize(x + i, count - i, to, codes + i);
}

// A logarithmic quantizer: the bits of a float are nearly its logarithm, which tells the code but for one, and the one limit
// between the two that are left tells that.
struct Logarithm {
    explicit Logarithm(const LogSteps& log)
        : usable(log.straight > 0.0F && log.last <= 16.0F), limits(sixteen(log.limit)), last(spread_float(log.last - 0.5F)),
          slope(spread_float(-log.slope / 8388608.0F)),
          start(spread_float(log.start + (127.0F - log.straight) * log.slope)) {}

    // The codes of values, and the limit that each was compared with.
    HALFBYTE_INLINE V codes(F own, F& limit) const {
        const V below = to_less(lesser(greater(fused(to_float(bits_of(own)), slope, start), spread_float(0.0F)), last));
        limit = pick(limits, below);
        // As whole numbers, which floats of either sign and NaN are ordered by as their prefixes are.
        return raised(below, less(bits_of(own), bits_of(limit)));
    }

    bool usable;
    Sixteen limits;
    F last, slope, start;
};

void log_quantize(const float* __restrict x, size_t count, const PrefixTable& to, uint8_t* __restrict codes) {
    const Logarithm log(*to.log);
    const F shift = spread_float(to.shift);
    F limit;
    size_t i = 0;
    for (; log.usable && i + lanes <= count; i += lanes)
        store_bytes(codes + i, log.codes(add_float(load_float(x + i), shift), limit));
    quantize_table(x + i, count - i, to, codes + i);
}

// Wrong by at most 4e-6 of x, for x above -10: the quotient by 3.4e-6 (a fit to the rational function of gelu_of, clipped
// where that has become 1), and by the roundings of seven terms, all positive, above and below, and of the inverse.
HALFBYTE_INLINE F rough_gelu_factor(F x) {
    const F c = lesser(spread_float(4.5F), greater(spread_float(-4.5F), x)), s = multiply_float(c, c);
    F p = spread_float(3.333677159389481e-05F);
    p = fused(p, s, spread_float(0.003832216141745448F));
    p = fused(p, s, spread_float(0.027383632957935333F));
    p = fused(p, s, spread_float(0.39893290400505066F));
    F q = spread_float(0.001166810281574726F);
    q = fused(q, s, spread_float(0.023806583136320114F));
    q = fused(q, s, spread_float(0.2352851927280426F));
    q = fused(q, s, spread_float(1.0F));
    return fused(multiply_float(p, c), inverse_of(q), spread_float(0.5F));
}

void rough_gelu_quantize(const float* __restrict x, size_t count, const Uniform& to, uint8_t* __restrict codes) {
    const Places places(to);
    constexpr float least = -10.0F;
    const float doubt = 10.0F * unit * places.size + 4e-6F * (places.size - least * places.by);
    float exact[lanes];
    size_t i = 0;
    if (places.usable && doubt < most_doubt) {
        const F by = spread_float(places.by), start = spread_float(places.start), clear = Places::clear_of(doubt);
        for (; i + lanes <= count; i += lanes) {
            V found;
            const F own = load_float(x + i), place = fused(rough_gelu_factor(own), multiply_float(own, by), start);
            const bool wrong = any(either(places.settle(place, clear, found), above(spread_float(least), own)));
            store_bytes(codes + i, found);
            if (!wrong) continue;
            gelu(x + i, lanes, exact);
            quantize(exact, lanes, to, codes + i);
        }
    }
    gelu_quantize(x + i, count - i, to, codes + i);
}

// A value is wrong by what the factor is, and by the roundings of product and sum, here and in the definition. That changes
// its code only next to a limit, and next to one a value is compared with that one: its logarithm is told to 0.45 codes, and
// the 0.05 that are left are at least a 34th of the distance to the next limit, however crooked the limits may be.
void rough_gelu_quantize_table(const float* __restrict x, size_t count, const PrefixTable& to, uint8_t* __restrict codes) {
    const Logarithm log(*to.log);
    constexpr float least = -largest_of_small, of_x = 4.3e-6F;
    const float of_shift = 1.3e-7F * to.shift + 1e-30F;
    const auto encode = [&](const float* v, size_t few, uint8_t* own) { log_quantize(v, few, to, own); };
    size_t i = 0;
    if (log.usable && to.shift >= 0.0F && to.log->apart > 40.0F * (of_x + of_shift / (largest_of_small + 1.0F))) {
        const F shift = spread_float(to.shift), doubt = spread_float(of_shift), share = spread_float(of_x);
        for (; i + lanes <= count; i += lanes) {
            F limit;
            const F own = load_float(x + i), value = fused(rough_gelu_factor(own), own, shift);
            store_bytes(codes + i, log.codes(value, limit));
            const M clear = above(magnitude(subtract_float(value, limit)), fused(magnitude(own), share, doubt));
            // Neither comparison holds for NaN.
            if (!all(both(clear, above(own, spread_float(least))))) gelu_by_pieces(x + i, lanes, encode, codes + i);
        }
    }
    gelu_by_pieces(x + i, count - i, encode, codes + i);
}

void rough_norm_quantize(const float* __restrict x, size_t rows, const Norm& norm, const Uniform& to,
                         float* __restrict scratch, uint8_t* __restrict codes) {
    const size_t n = norm.channels;
    const Places places(to);
    // weight / scale and bias / scale + start
    float* __restrict weight = scratch;
    float* __restrict bias = scratch + n;
    float largest_weight = 0.0F, largest_bias = 0.0F;
    for (size_t i = 0; i < n; ++i) {
        weight[i] = norm.weight[i] * places.by;
        bias[i] = norm.bias[i] * places.by + places.start;
        const float w = __builtin_fabsf(weight[i]), b = __builtin_fabsf(bias[i]);
        largest_weight = largest_weight > w ? largest_weight : w;
        largest_bias = largest_bias > b ? largest_bias : b;
    }
    // Each term of a place is rounded at most ten times on its way, and is at most as large as the place and the others are
    // together; the mean is rounded once.
    const float of_places = 20.0F * unit * (places.size + largest_bias);
    for (size_t row = 0; row < rows; ++row, x += n, codes += n) {
        const Moments moments = moments_of(x, norm);
        const float mean = static_cast<float>(moments.mean), inverse = static_cast<float>(1.0 / moments.deviation);
        const float doubt = of_places + 4.0F * unit * __builtin_fabsf(mean) * inverse * largest_weight;
        size_t i = 0;
        if (places.usable && inverse < 1e30F && doubt < most_doubt) {
            const F middle = spread_float(mean), narrow = spread_float(inverse), clear = Places::clear_of(doubt);
            for (; i + lanes <= n; i += lanes) {
                V found;
                const F z = multiply_float(subtract_float(load_float(x + i), middle), narrow);
                const F place = fused(z, load_float(weight + i), load_float(bias + i));
                const bool wrong = any(places.settle(place, clear, found));
                store_bytes(codes + i, found);
                if (wrong)
                    for (size_t j = i; j < i + lanes; ++j)
                        codes[j] = code_of(normalised(x[j], moments, norm.weight[j], norm.bias[j]), to);
            }
        }
        for (; i < n; ++i) codes[i] = code_of(normalised(x[i], moments, norm.weight[i], norm.bias[i]), to);
    }
}

#include "rough_softmax.inl"

RowKernels rough_row_kernels() {
    RowKernels kernels = row_kernels();
    kernels.quantize = rough_quantize;
    kernels.quantize_table = log_quantize;
    kernels.softmax_quantize = rough_softmax_quantize;
    kernels.softmax_quantize_table = rough_softmax_quantize_table;
    kernels.gelu_quantize = rough_gelu_quantize;
    kernels.gelu_quantize_table = rough_gelu_quantize_table;
    kernels.norm_quantize = rough_norm_quantize;
    return kernels;
}
