// HALFBYTE_TARGET_BEGIN(avx2) ... HALFBYTE_TARGET_END: the functions between may use those instructions, whatever the
// compiler's flags are. Headers of the standard library are included before, so that none of their inline functions is
// compiled for a processor that the program may not run on.
#pragma once

#include "isa.h"

#define HALFBYTE_PRAGMA(text) _Pragma(#text)
#if HALFBYTE_X86 && defined(__clang__)
#define HALFBYTE_TARGET_BEGIN(features) \
    HALFBYTE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define HALFBYTE_TARGET_END HALFBYTE_PRAGMA(clang attribute pop)
#elif HALFBYTE_X86 || HALFBYTE_ARM
#define HALFBYTE_TARGET_BEGIN(features) HALFBYTE_PRAGMA(GCC push_options) HALFBYTE_PRAGMA(GCC target(features))
#define HALFBYTE_TARGET_END HALFBYTE_PRAGMA(GCC pop_options)
#endif

#define HALFBYTE_AVX2 "avx2,fma"
#define HALFBYTE_AVX512 "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512"
#define HALFBYTE_NEON "arch=armv8.2-a+dotprod"

#if defined(__GNUC__) || defined(__clang__)
#define HALFBYTE_INLINE inline __attribute__((always_inline))
#define HALFBYTE_APART __attribute__((noinline))
#else
#define HALFBYTE_INLINE inline
#define HALFBYTE_APART
#endif
