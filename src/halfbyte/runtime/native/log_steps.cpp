#include "log_steps.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace halfbyte {
namespace {

constexpr uint32_t infinite = 0x7F80, negative = 0x8000, prefixes = 0x10000;
// Logarithms of floats well above the denormal ones, and of the smallest whose prefix is not 0.
constexpr double lowest_sure = -120, lowest_prefix = -133;

float value_of(uint32_t prefix) {
    const uint32_t bits = prefix << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// limit[g], the least value whose code is not above g; false: codes do not fall from `last` to 0.
bool limits_of(const unsigned char* codes, float* limit) {
    const int last = codes[0];
    for (uint32_t prefix = negative; prefix < prefixes; ++prefix)
        if (codes[prefix] != last) return false;
    for (uint32_t prefix = infinite; prefix < negative; ++prefix)
        if (codes[prefix] != 0) return false;
    int code = last;
    for (uint32_t prefix = 1; prefix < infinite; ++prefix) {
        if (codes[prefix] > code) return false;
        while (code > codes[prefix]) limit[--code] = value_of(prefix);
    }
    return code == 0;
}

}  // namespace

LogSteps log_steps_of(const unsigned char* codes) {
    LogSteps steps;
    const int last = codes[0];
    if (last < 2 || !limits_of(codes, steps.limit)) return LogSteps();
    const auto octave = [&](int g) { return std::log2(static_cast<double>(steps.limit[g])); };
    int far = 0;  // so many limits, from the first on, are far from denormal
    while (far < last && octave(far) >= lowest_sure) ++far;
    if (far < 2 || (far < last && last < 16) || !(octave(0) > octave(far - 1))) return LogSteps();
    const double slope = (far - 1) / (octave(0) - octave(far - 1));
    double start = 0, crooked = 0;
    for (int g = 0; g < far; ++g) start += (g + 0.5 + slope * octave(g)) / far;
    for (int g = 0; g < last; ++g) {
        const double border = start - slope * octave(g);
        steps.border[g] = static_cast<float>(border);
        if (g < far) crooked = std::fmax(crooked, std::fabs(border - (g + 0.5)));
    }
    if (crooked > 0.25) return LogSteps();
    steps.last = static_cast<float>(last);
    steps.slope = static_cast<float>(slope);
    steps.start = static_cast<float>(start);
    steps.crooked = static_cast<float>(crooked) + 1e-4F;
    steps.unsure = static_cast<float>(start - slope * lowest_sure);
    // Of smaller values all that is left is 0, which has the last code; where v does not say so, nothing is sure.
    const double of_zeros = start - slope * (lowest_prefix - 1);
    steps.sure = of_zeros >= last ? static_cast<float>(of_zeros) : std::numeric_limits<float>::infinity();
    steps.apart = std::numeric_limits<float>::infinity();
    for (int g = 1; g < last; ++g)
        steps.apart = std::fmin(steps.apart, (steps.limit[g - 1] - steps.limit[g]) / (steps.limit[g] + largest_of_small + 1.0F));
    if (far == last && 0.0431 * slope + crooked < 0.45) steps.straight = 0.043F;
    return steps;
}

}  // namespace halfbyte
