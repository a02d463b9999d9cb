#include "isa.h"

#include <stdexcept>

namespace halfbyte {

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx2: return "avx2";
        case Isa::avx512vnni: return "avx512vnni";
        default: return "portable";
    }
}

Isa isa_of(const std::string& name) {
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512vnni})
        if (name == isa_name(isa)) return isa;
    throw std::invalid_argument("no instruction set '" + name + "'; known: portable, avx2, avx512vnni");
}

bool isa_available(Isa isa) {
#if HALFBYTE_X86
    __builtin_cpu_init();
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == Isa::avx512vnni)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return isa == Isa::portable;
}

Isa best_isa() {
    for (Isa isa : {Isa::avx512vnni, Isa::avx2})
        if (isa_available(isa)) return isa;
    return Isa::portable;
}

}  // namespace halfbyte
