// Which instruction set the kernels use: the best that the processor has, or the one that HALFBYTE_ISA names.
#pragma once

#include <cstddef>
#include <string>

// Other processors, and compilers without function targets, get the portable kernels.
#if (defined(__x86_64__) || defined(__amd64__)) && (defined(__GNUC__) || defined(__clang__))
#define HALFBYTE_X86 1
#else
#define HALFBYTE_X86 0
#endif
// With the compiler and the system for which these kernels are tested; others have portable ones.
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define HALFBYTE_ARM 1
#else
#define HALFBYTE_ARM 0
#endif

namespace halfbyte {

enum class Isa { portable, avx2, avx512vnni, neon };

// From the slowest to the fastest.
constexpr Isa all_isas[] = {Isa::portable, Isa::neon, Isa::avx2, Isa::avx512vnni};

const char* isa_name(Isa isa);

// Throws std::invalid_argument for a name that is none of those of `isa_name`.
Isa isa_of(const std::string& name);

bool isa_available(Isa isa);

Isa best_isa();

}  // namespace halfbyte
