// Loaded first (LD_PRELOAD) into a process whose libraries had their CPUID instructions replaced by UD2, see avx2_only.py:
// runs each for them and takes AVX-512, VNNI and AMX out of what the processor says of itself. UD2 elsewhere ends the process
// as it would have. Linux on x86-64.
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

// Leaf 7: EBX AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL; ECX VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; EDX 4VNNIW, 4FMAPS,
// VP2INTERSECT, AMX BF16, AVX512 FP16, AMX TILE, AMX INT8. Its subleaf 1: EAX AVX VNNI, AVX512 BF16; EDX AVX VNNI INT8, INT16.
static const uint32_t hidden_7_0[3] = {
    1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31,
    1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14,
    1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25,
};
static const uint32_t hidden_7_1_eax = 1u << 4 | 1u << 5, hidden_7_1_edx = 1u << 4 | 1u << 10;

static void illegal(int number, siginfo_t* info, void* context) {
    greg_t* const registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    const uint8_t* const at = (const uint8_t*)registers[REG_RIP];
    if (at[0] != 0x0F || at[1] != 0x0B) {
        signal(number, SIG_DFL);
        return;
    }
    const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
    uint32_t a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~hidden_7_0[0];
        c &= ~hidden_7_0[1];
        d &= ~hidden_7_0[2];
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~hidden_7_1_eax;
        d &= ~hidden_7_1_edx;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
    (void)info;
}

__attribute__((constructor)) static void watch(void) {
    struct sigaction action = {.sa_sigaction = illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGILL, &action, 0);
}
