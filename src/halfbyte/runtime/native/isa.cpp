#include "isa.h"

#include <iterator>
#include <stdexcept>

#if HALFBYTE_ARM
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace halfbyte {

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx2: return "avx2";
        case Isa::avx512vnni: return "avx512vnni";
        case Isa::neon: return "neon";
        default: return "portable";
    }
}

Isa isa_of(const std::string& name) {
    std::string known;
    for (Isa isa : all_isas) {
        if (name == isa_name(isa)) return isa;
        known += (known.empty() ? "" : ", ") + std::string(isa_name(isa));
    }
    throw std::invalid_argument("no instruction set '" + name + "'; known: " + known);
}

bool isa_available(Isa isa) {
#if HALFBYTE_X86
    __builtin_cpu_init();
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == Isa::avx512vnni)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#elif HALFBYTE_ARM
    // Products of bytes are an option of the first such processors.
    if (isa == Isa::neon) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
    return isa == Isa::portable;
}

Isa best_isa() {
    for (auto isa = std::rbegin(all_isas); isa != std::rend(all_isas); ++isa)
        if (isa_available(*isa)) return *isa;
    return Isa::portable;
}

}  // namespace halfbyte
