// What a table of codes by the upper 16 bits of a float amounts to where it is that of a logarithmic quantizer.
#pragma once

namespace halfbyte {

// An input of a nonlinearity whose value is near a limit is at most this, or not larger than the limit and 1 more.
constexpr float largest_of_small = 10.0F;

// Codes 0 to `last` that fall as values rise, nearly evenly in their logarithm: v = start - slope * log2(value) is within
// 0.5 + crooked of the code.
struct LogSteps {
    float last = 0;  // 0: the table is none of these, and nothing else here is set
    float slope = 0, start = 0, crooked = 0;
    // Values whose v is between these two may be denormal: too small for their logarithm to be told from v.
    float unsure = 0, sure = 0;
    // Whether v stays within one of the code, above or below, with a float's bits in the place of its logarithm, made as
    // large as the logarithm on average by adding `straight`. 0: not.
    float straight = 0;
    // The least distance of two neighbouring limits, in parts of the lower one and largest_of_small + 1.
    float apart = 0;
    // Codes above g are those of values below limit[g], whose v is above border[g]; g is below `last`.
    float border[256] = {}, limit[256] = {};
};

// `codes` by prefix, 65536 of them.
LogSteps log_steps_of(const unsigned char* codes);

}  // namespace halfbyte
