// Codes of softmax, found roughly as in rough.inl: a row's powers are added up in float32; uniform codes are multiples of
// them, and those of a logarithmic quantizer are straight in the logit itself and need no power of their own.

// One row, padded to whole vectors with what has no part in a softmax.
struct Row {
    float x[row_piece + lanes];
    float powers[row_piece + lanes];
    uint8_t codes[row_piece + lanes];
    bool doubtful[row_piece / lanes + 1];  // by vector
    size_t padded;
    float top;    // the largest value times the factor
    float sum;    // of e^(value * factor - top)
    float doubt;  // how much of the sum it may be wrong by
};

// e^x for -87 <= x <= 0, wrong by at most 2e-7 of it and, of the logarithm of 2, 3e-8 x.
HALFBYTE_INLINE F rough_power(F x) {
    const F shifter = spread_float(12582912.0F);  // 1.5 * 2^23: adding it rounds to a whole number
    const F shifted = fused(x, spread_float(1.44269504F), shifter), n = subtract_float(shifted, shifter);
    const F r = fused(n, spread_float(-0.693147181F), x);
    F p = spread_float(0.008297648280858994F);
    p = fused(p, r, spread_float(0.04191543161869049F));
    p = fused(p, r, spread_float(0.16667574644088745F));
    p = fused(p, r, spread_float(0.49998894333839417F));
    p = fused(p, r, spread_float(0.9999997019767761F));
    p = fused(p, r, spread_float(1.0000001192092896F));
    return with_exponent(p, shifted);
}

// Whether the row's sum is a number. A factor above 0 lets the largest value decide which product is the largest.
HALFBYTE_INLINE bool rough_row(const float* __restrict x, size_t columns, float factor, bool keep, Row& row) {
    const size_t whole = columns / lanes * lanes;
    row.padded = (columns + lanes - 1) / lanes * lanes;
    std::memcpy(row.x + whole, x + whole, (columns - whole) * sizeof(float));
    for (size_t j = columns; j < row.padded; ++j) row.x[j] = x[0];
    F most = spread_float(-__builtin_inff());
    for (size_t i = 0; i < whole; i += lanes) {
        const F part = load_float(x + i);
        store_float(row.x + i, part);
        most = greater(most, part);
    }
    if (whole < columns) most = greater(most, load_float(row.x + whole));
    float lane[lanes];
    store_float(lane, most);
    row.top = lane[0];
    for (size_t j = 1; j < lanes; ++j) row.top = row.top > lane[j] ? row.top : lane[j];
    row.top *= factor;
    // The padding: a power that is nothing beside the largest, which is 1.
    for (size_t j = columns; j < row.padded; ++j) row.x[j] = (row.top - 80.0F) / factor;
    const F by = spread_float(factor), down = spread_float(-row.top), least = spread_float(-87.0F);
    F sum = spread_float(0.0F);
    for (size_t i = 0; i < row.padded; i += lanes) {
        // NaN stays, and makes the sum NaN.
        const F power = rough_power(greater(least, fused(load_float(row.x + i), by, down)));
        if (keep) store_float(row.powers + i, power);
        sum = add_float(sum, power);
    }
    store_float(lane, sum);
    row.sum = 0.0F;
    for (size_t j = 0; j < lanes; ++j) row.sum += lane[j];
    // 136 roundings of a sum of 1024 powers; those of the powers, which count less the smaller they are; that of a logit in
    // the definition, which is as large as the largest and the difference from it.
    row.doubt = 1e-5F + 2.0F * unit * __builtin_fabsf(row.top);
    return row.sum < 1e30F;
}

// The codes of a row, or of its doubtful vectors: `exact` of the quotient as it is defined.
template <class Exact>
HALFBYTE_INLINE void settle_row(const float* __restrict x, size_t columns, float factor, const bool* doubtful,
                                const Exact& exact, uint8_t* __restrict codes) {
    const double top = static_cast<double>(largest_of(x, columns, factor));
    const double sum = sum_of_powers(x, columns, factor, top, nullptr);
    for (size_t i = 0; i < columns; ++i)
        if (doubtful == nullptr || doubtful[i / lanes])
            codes[i] = exact(static_cast<float>(exponential(static_cast<double>(x[i] * factor) - top) / sum));
}

// Codes row by row: `rough` puts those of a row into it and returns whether any vector is in doubt, or cannot do it.
enum class Found { all, some, none };
template <class Rough, class Exact>
HALFBYTE_INLINE void softmax_code_rows(const float* x, size_t rows, size_t columns, float factor, bool keep,
                                       const Rough& rough, const Exact& exact, uint8_t* codes) {
    const bool fits = factor > 0.0F && columns <= row_piece;
    Row row;
    for (size_t r = 0; r < rows; ++r, x += columns, codes += columns) {
        const Found found = fits && rough_row(x, columns, factor, keep, row) ? rough(row) : Found::none;
        if (found != Found::none) std::memcpy(codes, row.codes, columns);
        if (found != Found::all) settle_row(x, columns, factor, found == Found::some ? row.doubtful : nullptr, exact, codes);
    }
}

void rough_softmax_quantize(const float* x, size_t rows, size_t columns, float factor, const Uniform& to, uint8_t* codes) {
    const Places places(to);
    const F start = spread_float(places.start);
    const auto rough = [&](Row& row) {
        // A power is wrong by the rounding of its own logit and of the difference, at most 87 more; see rough_power. All of
        // that is in proportion to the power, and few are large.
        const float share_of_doubt = 2.0F * row.doubt + 1e-5F, doubt = 8.0F * unit * places.size;
        if (!places.usable || !(doubt < most_doubt) || !(share_of_doubt < most_doubt)) return Found::none;
        const F share = spread_float(places.by / row.sum), less = spread_float(-share_of_doubt);
        const F clear = spread_float(0.5F - doubt + share_of_doubt * places.start);
        bool wrong = false;
        for (size_t i = 0; i < row.padded; i += lanes) {
            V found;
            const F place = fused(load_float(row.powers + i), share, start);
            const bool here = any(places.settle(place, fused(place, less, clear), found));
            store_bytes(row.codes + i, found);
            row.doubtful[i / lanes] = here;
            wrong = wrong || here;
        }
        return wrong ? Found::some : Found::all;
    };
    softmax_code_rows(x, rows, columns, factor, true, rough, [&](float p) { return code_of(p, to); }, codes);
}

// Codes of v = start - slope * log2(quotient): the whole number below it, or one more above the border between the two.
// With more than 16 borders, which lie in memory, they are only looked up where a value is not far from all of them.
template <bool in_registers>
struct LogCodes {
    explicit LogCodes(const LogSteps& steps)
        : log(steps), borders(sixteen(steps.border)), last(spread_float(steps.last - 0.5F)), unsure(spread_float(steps.unsure)),
          sure(spread_float(steps.sure)) {}

    // Whether one is in doubt, v being at most by `doubt` wrong.
    HALFBYTE_INLINE bool settle(F v, F doubt, V& codes) const {
        const V below = to_less(lesser(greater(v, spread_float(0.0F)), last));
        if (in_registers) {
            const F past = subtract_float(v, pick(borders, below));
            codes = raised(below, above(past, spread_float(0.0F)));
            return any(above(doubt, magnitude(past)));
        }
        const bool maybe = any(both(above(v, unsure), above(sure, v)));
        F past = subtract_float(v, add_float(to_float(below), spread_float(0.5F)));
        if (any(above(add_float(doubt, spread_float(log.crooked)), magnitude(past))))
            past = subtract_float(v, gather(log.border, below));
        codes = raised(below, above(past, spread_float(0.0F)));
        return maybe || any(above(doubt, magnitude(past)));
    }

    const LogSteps& log;
    Sixteen borders;
    F last, unsure, sure;
};

template <bool in_registers>
void softmax_log_rows(const float* x, size_t rows, size_t columns, float factor, const PrefixTable& to, uint8_t* codes) {
    constexpr float log2_e = 1.44269504F;
    const LogSteps& log = *to.log;
    const LogCodes<in_registers> borders(log);
    const F by = spread_float(-log.slope * log2_e * factor);
    const auto rough = [&](Row& row) {
        // Six roundings of the terms of v, which are as large as the logits that have a code of their own.
        const float reach = (log.last + 1.0F) / log.slope + 10.0F + log2_e * __builtin_fabsf(row.top);
        const float doubt = log.slope * (2.0F * row.doubt + 6.0F * unit * reach);
        if (log.last == 0.0F || to.shift != 0.0F || !(doubt < most_doubt)) return Found::none;
        const F start = spread_float(log.start + log.slope * (__builtin_log2f(row.sum) + log2_e * row.top));
        const F unsure = spread_float(doubt);
        bool wrong = false;
        for (size_t i = 0; i < row.padded; i += lanes) {
            V found;
            const bool here = borders.settle(fused(load_float(row.x + i), by, start), unsure, found);
            store_bytes(row.codes + i, found);
            row.doubtful[i / lanes] = here;
            wrong = wrong || here;
        }
        return wrong ? Found::some : Found::all;
    };
    const auto exact = [&](float p) { return to.codes[prefix_of(p + to.shift)]; };
    softmax_code_rows(x, rows, columns, factor, false, rough, exact, codes);
}

void rough_softmax_quantize_table(const float* x, size_t rows, size_t columns, float factor, const PrefixTable& to,
                                  uint8_t* codes) {
    if (to.log->last > 16.0F) return softmax_log_rows<false>(x, rows, columns, factor, to, codes);
    softmax_log_rows<true>(x, rows, columns, factor, to, codes);
}
