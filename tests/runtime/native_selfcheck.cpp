// The kernels without Python, for any processor: products against plain loops, for every pair of widths and with codes at
// their extremes, and of what goes row by row a digest of the bits, which is the same on every machine.
//
// Prints a line for each instruction set that the processor has, its name and the digest; ends with 1 where a product is
// wrong.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bounds.h"
#include "kernels.h"
#include "log_steps.h"
#include "pool.h"
#include "rowwise.h"

namespace {

using namespace halfbyte;

std::mt19937 generator;

uint32_t below(uint32_t count) { return static_cast<uint32_t>(generator()) % count; }

enum class Codes { random, ends, least, most };
constexpr Codes all_codes[] = {Codes::random, Codes::ends, Codes::least, Codes::most};

std::vector<uint8_t> codes(size_t count, int bits, Codes kind) {
    std::vector<uint8_t> made(count);
    const uint32_t last = (1U << bits) - 1;
    for (uint8_t& code : made)
        code = static_cast<uint8_t>(kind == Codes::random ? below(last + 1)
                                    : kind == Codes::ends ? below(2) * last
                                    : kind == Codes::most ? last : 0);
    return made;
}

// From -8 to 8, and some at which functions change; made of whole numbers, so that every library gives the same.
std::vector<float> floats(size_t count) {
    std::vector<float> made(count);
    const float edges[] = {0.0F, -0.0F, 0.5F, 1.5F, -2.5F, 5.6F, -5.6F, 1e-38F, 1e-45F, 30.0F, -30.0F};
    for (float& x : made)
        x = below(16) == 0 ? edges[below(11)] : (static_cast<float>(below(1U << 24)) - 8388608.0F) / 1048576.0F;
    return made;
}

[[noreturn]] void fail(const std::string& what) {
    std::printf("%s: %s\n", isa_name(active_kernels().isa), what.c_str());
    std::exit(1);
}

float rescaled(int64_t sum, float scale, const float* bias) {
    const float y = static_cast<float>(sum) * scale;
    return bias == nullptr ? y : y + *bias;
}

// [m, k] codes times [n, k] codes, as whole numbers and rescaled.
void check_product(size_t m, size_t n, size_t k, int left_bits, int right_bits, Codes left_kind, Codes right_kind) {
    const std::vector<uint8_t> a = codes(m * k, left_bits, left_kind), w = codes(n * k, right_bits, right_kind);
    const int32_t za = static_cast<int32_t>(below(601)) - 300;
    std::vector<int32_t> zeros(n);
    std::vector<float> scale(n), bias(n);
    const bool centred = below(2) == 0;
    for (size_t j = 0; j < n; ++j) {
        zeros[j] = centred ? 1 << (right_bits - 1) : static_cast<int32_t>(below(601)) - 300;
        scale[j] = static_cast<float>(below(1000) + 1) / 997.0F;
        bias[j] = static_cast<float>(below(2000)) / 499.0F - 2.0F;
    }
    PackedRight right;
    pack(RightSource{w.data(), n, k, static_cast<ptrdiff_t>(k), 1, right_bits, zeros.data(), true}, left_bits, active_kernels(), right);
    Left left;
    left.codes = a.data();
    left.stride = k;
    left.bits = left_bits;
    left.zero = za;
    const int threads = static_cast<int>(below(3)) + 1;
    std::vector<int32_t> sums(m * n, -1);
    std::vector<float> values(m * n, -1.0F);
    multiply(left, m, right, Epilogue{}, sums.data(), n, threads);
    multiply(left, m, right, Epilogue{scale.data(), true, bias.data()}, values.data(), n, threads);
    for (size_t i = 0; i < m; ++i)
        for (size_t j = 0; j < n; ++j) {
            int64_t sum = 0;
            for (size_t l = 0; l < k; ++l) sum += (static_cast<int64_t>(a[i * k + l]) - za) * (static_cast<int64_t>(w[j * k + l]) - zeros[j]);
            if (sum != sums[i * n + j] || rescaled(sum, scale[j], &bias[j]) != values[i * n + j])
                fail("a" + std::to_string(left_bits) + " w" + std::to_string(right_bits) + ", " + std::to_string(m) + " x " +
                     std::to_string(n) + " x " + std::to_string(k) + ": " + std::to_string(sums[i * n + j]) + ", not " + std::to_string(sum));
        }
}

// Levels, or codes less a zero point, times codes that lie across; head by head.
void check_heads(size_t heads, size_t m, size_t n, size_t k, int left_bits, int right_bits, bool levels) {
    const std::vector<uint8_t> a = codes(heads * m * k, left_bits, levels ? Codes::least : Codes::ends);
    const std::vector<uint8_t> b = codes(heads * k * n, right_bits, below(2) == 0 ? Codes::random : Codes::most);
    int16_t table[256] = {32767};
    for (int i = 1; i < 1 << left_bits; ++i) table[i] = static_cast<int16_t>(below(32768));
    const int32_t za = levels ? 0 : 7, zb = static_cast<int32_t>(below(601)) - 300;
    const float scale = 0.011F;
    std::vector<float> values(heads * m * n);
    HeadProducts p{};
    p.heads = heads;
    p.rows = m;
    p.left = a.data();
    p.left_step = m * k;
    p.left_stride = k;
    p.left_bits = left_bits;
    p.left_zero = za;
    p.table = levels ? table : nullptr;
    p.right = RightSource{b.data(), n, k, 1, static_cast<ptrdiff_t>(n), right_bits, &zb, false};
    p.right_step = k * n;
    p.epilogue = Epilogue{&scale, false, nullptr};
    p.out = values.data();
    p.out_step = m * n;
    p.out_stride = n;
    multiply_heads(p, active_kernels(), static_cast<int>(below(3)) + 1);
    for (size_t h = 0; h < heads; ++h)
        for (size_t i = 0; i < m; ++i)
            for (size_t j = 0; j < n; ++j) {
                int64_t sum = 0;
                for (size_t l = 0; l < k; ++l) {
                    const uint8_t code = a[(h * m + i) * k + l];
                    sum += (levels ? table[code] : code - za) * (static_cast<int64_t>(b[(h * k + l) * n + j]) - zb);
                }
                if (values[(h * m + i) * n + j] != rescaled(sum, scale, nullptr))
                    fail(std::string(levels ? "levels" : "heads") + " of " + std::to_string(left_bits) + " and " + std::to_string(right_bits) + " bits");
            }
}

class Digest {
  public:
    template <class T>
    void add(const std::vector<T>& values) {
        const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
        for (size_t i = 0; i < values.size() * sizeof(T); ++i) value_ = (value_ ^ bytes[i]) * UINT64_C(1099511628211);
    }
    uint64_t value() const { return value_; }

  private:
    uint64_t value_ = UINT64_C(14695981039346656037);
};

// Floats, codes by a step and codes by a table of everything that goes row by row.
uint64_t digest_of_rows() {
    generator.seed(2);
    Digest digest;
    std::vector<uint8_t> table(65536), falling(65536);
    for (uint8_t& code : table) code = static_cast<uint8_t>(below(256));
    // That of powers of two: the code is the number of halvings below 1, at most 15.
    for (size_t prefix = 0; prefix < 65536; ++prefix) {
        const int halvings = 127 - static_cast<int>(prefix >> 7);
        falling[prefix] = static_cast<uint8_t>(prefix >= 32768 ? 15 : halvings < 0 ? 0 : halvings > 15 ? 15 : halvings);
    }
    const LogSteps none = log_steps_of(table.data()), log = log_steps_of(falling.data());
    for (const size_t columns : {1, 7, 8, 64, 197, 600})
        for (const Source::Kind kind : {Source::Kind::plain, Source::Kind::gelu, Source::Kind::norm, Source::Kind::softmax, Source::Kind::add}) {
            const size_t rows = 5;
            const std::vector<float> x = floats(rows * columns), y = floats(rows * columns), weight = floats(columns), bias = floats(columns);
            Source source{kind, x.data(), y.data(), rows, columns, Norm{columns, weight.data(), bias.data(), 1e-6}, 0.125F};
            std::vector<float> values(rows * columns);
            compute(source, values.data(), 2);
            digest.add(values);
            std::vector<uint8_t> made(rows * columns);
            for (const Target& target : {Target{Uniform{0.13F, -0.2F, 3.0F, 15.0F}, PrefixTable{}}, Target{Uniform{}, PrefixTable{table.data(), 0.17F, &none}},
                                         Target{Uniform{}, PrefixTable{falling.data(), 0.0F, &log}}}) {
                compute_codes(source, target, made.data(), 2);
                digest.add(made);
            }
        }
    return digest.value();
}

void check(Isa isa) {
    choose_kernels(isa);
    generator.seed(1);
    for (int left_bits = 2; left_bits <= 8; ++left_bits)
        for (int right_bits = 2; right_bits <= 8; ++right_bits) {
            for (const Codes left : all_codes)
                for (const Codes right : all_codes) check_product(below(14) + 1, below(70) + 1, below(90) + 1, left_bits, right_bits, left, right);
            // Longer than any number of steps that is added up in 16 bits, but for the smallest widths.
            const int steps = pair_steps(right_bits, left_bits);
            check_product(7, 33, static_cast<size_t>(steps < 8 ? 67 : steps > 270 ? 2163 : 8 * steps + 3), left_bits, right_bits, Codes::most, Codes::least);
            check_heads(2, 9, 21, 37, left_bits, right_bits, false);
            check_heads(2, 9, 21, 37, left_bits, right_bits, true);
        }
    // Sums of levels beyond 32 bits.
    check_heads(1, 5, 9, 1100, 4, 8, true);
    std::printf("%s %016" PRIx64 "\n", isa_name(isa), digest_of_rows());
    std::fflush(stdout);
}

}  // namespace

int main() {
    for (const Isa isa : all_isas)
        if (isa_available(isa)) check(isa);
    return 0;
}
