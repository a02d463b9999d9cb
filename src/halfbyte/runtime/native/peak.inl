// How fast an instruction set multiplies and adds at best: sums that never leave their registers.

template <class Op, int macs>
uint64_t peak(uint64_t rounds) {
    constexpr int chains = 12;
    typename Op::Vector sums[chains], a = Op::ones();
#pragma GCC unroll 16
    for (int i = 0; i < chains; ++i) sums[i] = a;
    for (uint64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < chains; ++i) {
            // What the compiler is told to have changed it can neither compute once for all nor leave out.
            __asm__ volatile("" : "+v"(a));
            sums[i] = Op::step(sums[i], a);
            __asm__ volatile("" : "+v"(sums[i]));
        }
    }
    return rounds * chains * macs;
}
