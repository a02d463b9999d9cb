// The Python module.
#if defined(__linux__)
#include <malloc.h>
#endif

#include <chrono>
#include <string>

#include "arrays.h"
#include "bind.h"
#include "kernels.h"

namespace halfbyte {
namespace {

// Multiply-adds a second of a loop that touches registers only, in billions: the best of a few short runs.
double peak(const std::string& kind) {
    const KernelSet& set = active_kernels();
    const PeakFunction loop = kind == "bytes" ? set.byte_peak : kind == "words" ? set.word_peak : set.float_peak;
    if (kind != "bytes" && kind != "words" && kind != "floats") refuse("kind must be bytes, words or floats");
    if (loop == nullptr) return 0.0;
    const py::gil_scoped_release released;
    double best = 0.0;
    for (int run = 0; run < 5; ++run) {
        const auto start = std::chrono::steady_clock::now();
        const uint64_t macs = loop(1000000);
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        best = std::max(best, static_cast<double>(macs) / taken.count() / 1e9);
    }
    return best;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Few-bit integer kernels.";
    active_kernels();  // an unknown HALFBYTE_ISA is told at import
    m.def("isa", [] { return isa_name(active_kernels().isa); });
    m.def("isas", [] {
        py::list names;
        for (Isa isa : all_isas)
            if (isa_available(isa)) names.append(isa_name(isa));
        return names;
    });
    m.def("choose_isa", [](const std::string& name) { choose_kernels(isa_of(name)); }, pybind11::arg("name"));
    m.def("return_memory", [] {
#if defined(__GLIBC__)
        malloc_trim(0);
#endif
    });
    m.def("multiply_add_peak", peak, pybind11::arg("kind"));
    bind_products(m);
    bind_rows(m);
    bind_plan(m);
}

}  // namespace halfbyte
