// Python's side of the products.
#include <memory>

#include "arrays.h"
#include "bind.h"
#include "bounds.h"
#include "kernels.h"
#include "pool.h"

namespace halfbyte {
namespace {

using Ints = std::vector<py::ssize_t>;

constexpr long long int32_low = INT32_MIN, int32_high = INT32_MAX;
// The sum of this many codes fits into 32 bits.
constexpr long long longest = 1 << 23;

struct PackedWeight {
    PackedRight right;
};

std::vector<int32_t> zeros_of(const py::object& zero, py::ssize_t n, const char* name) {
    if (py::isinstance<py::array>(zero)) {
        const int32_t* zeros = pointer<int32_t>(py::reinterpret_borrow<py::array>(zero), name, {n});
        return {zeros, zeros + n};
    }
    if (!py::isinstance<py::int_>(zero)) refuse(std::string(name) + " must be an int or an int32 array");
    const long long value = zero.cast<long long>();
    check_range(value, int32_low, int32_high, name);
    return {static_cast<int32_t>(value)};
}

std::unique_ptr<PackedWeight> pack_weight(const py::array& codes, int bits, const py::object& zero, int activation_bits) {
    check_range(bits, 2, 8, "bits");
    check_range(activation_bits, 2, 8, "activation_bits");
    const uint8_t* from = pointer<uint8_t>(codes, "codes", {any_size, any_size});
    const py::ssize_t n = codes.shape(0), k = codes.shape(1);
    check_range(n, 1, longest, "the number of rows");
    check_range(k, 1, longest, "the number of columns");
    check_codes(from, static_cast<size_t>(n * k), bits, "codes");
    const std::vector<int32_t> zeros = zeros_of(zero, n, "zero");
    auto packed = std::make_unique<PackedWeight>();
    const RightSource source{from, static_cast<size_t>(n), static_cast<size_t>(k), k, 1, bits, zeros.data(), zeros.size() > 1};
    const py::gil_scoped_release released;
    pack(source, activation_bits, active_kernels(), packed->right);
    return packed;
}

py::array linear(const py::array& codes, const PackedWeight& packed, int32_t za, const py::object& scale,
                 const py::object& bias, const py::object& out, int threads) {
    const PackedRight& right = packed.right;
    const py::ssize_t n = static_cast<py::ssize_t>(right.n), k = static_cast<py::ssize_t>(right.k);
    check_range(threads, 1, most_threads, "threads");
    Left left;
    left.codes = pointer<uint8_t>(codes, "codes", {any_size, k});
    left.stride = right.k;
    left.bits = right.left_bits;
    left.zero = za;
    const py::ssize_t m = codes.shape(0);
    check_codes(left.codes, static_cast<size_t>(m * k), left.bits, "codes");
    const Epilogue epilogue{pointer_or_null<float>(scale, "scale", {n}), true, pointer_or_null<float>(bias, "bias", {n})};
    if (epilogue.scale == nullptr && epilogue.bias != nullptr) refuse("bias needs a scale");
    if (!sums_fit(left, right)) refuse("the sums of these codes and zero points may pass 2^31");
    py::array result = epilogue.scale == nullptr ? output<int32_t>(out, "out", {m, n}) : output<float>(out, "out", {m, n});
    void* to = result.mutable_data();
    const py::gil_scoped_release released;
    multiply(left, static_cast<size_t>(m), right, epilogue, to, right.n, threads);
    return result;
}

// The operands that every product of heads has. `transposed`: the right one is [H, N, K], as keys are.
py::array heads(const py::array& left, int left_bits, int32_t left_zero, const int16_t* table, const py::array& right,
                int right_bits, int32_t right_zero, const py::object& scale, bool transposed, const py::object& out,
                int threads) {
    check_range(left_bits, 2, 8, "left_bits");
    check_range(right_bits, 2, 8, "right_bits");
    check_range(threads, 1, most_threads, "threads");
    HeadProducts p{};
    p.left = pointer<uint8_t>(left, "left", {any_size, any_size, any_size});
    const py::ssize_t h = left.shape(0), m = left.shape(1), k = left.shape(2);
    const uint8_t* from = transposed ? pointer<uint8_t>(right, "right", {h, any_size, k})
                                     : pointer<uint8_t>(right, "right", {h, k, any_size});
    const py::ssize_t n = right.shape(transposed ? 1 : 2);
    check_range(n, 1, longest, "the number of columns");
    check_range(k, 1, longest, "the length of a product");
    check_codes(p.left, static_cast<size_t>(h * m * k), left_bits, "left");
    check_codes(from, static_cast<size_t>(h * n * k), right_bits, "right");
    p.heads = static_cast<size_t>(h);
    p.rows = static_cast<size_t>(m);
    p.left_stride = static_cast<size_t>(k);
    p.left_step = static_cast<size_t>(m * k);
    p.left_bits = left_bits;
    p.left_zero = left_zero;
    p.table = table;
    p.right = {from, static_cast<size_t>(n), static_cast<size_t>(k), transposed ? k : 1, transposed ? 1 : n, right_bits,
               &right_zero, false};
    p.right_step = static_cast<size_t>(n * k);
    p.out_stride = static_cast<size_t>(n);
    p.out_step = static_cast<size_t>(m * n);
    const float factor = scale.is_none() ? 0.0F : scale.cast<float>();
    if (!scale.is_none()) p.epilogue.scale = &factor;
    const int64_t last = (1 << right_bits) - 1, zero = right_zero;
    const int64_t largest = std::max({std::abs(zero), std::abs(last - zero)});
    Left sample;
    sample.bits = left_bits;
    sample.zero = left_zero;
    const bool fits = table == nullptr ? sums_fit_int32(k, sample.largest(), largest)
                                       : sums_fit_int32(k, 32767, largest);
    if (!fits && (table == nullptr || scale.is_none())) refuse("the sums of these codes and zero points may pass 2^31");
    py::array result = scale.is_none() ? output<int32_t>(out, "out", {h, m, n}) : output<float>(out, "out", {h, m, n});
    p.out = result.mutable_data();
    const py::gil_scoped_release released;
    multiply_heads(p, active_kernels(), threads);
    return result;
}

py::array matmul(const py::array& left, const py::array& right, int left_bits, int right_bits, int32_t left_zero,
                 int32_t right_zero, const py::object& scale, bool transposed, const py::object& out, int threads) {
    return heads(left, left_bits, left_zero, nullptr, right, right_bits, right_zero, scale, transposed, out, threads);
}

py::array matmul_levels(const py::array& left, const py::array& table, const py::array& right, int right_bits,
                        int32_t right_zero, const py::object& scale, const py::object& out, int threads) {
    const int16_t* levels = pointer<int16_t>(table, "table", {any_size});
    int bits = 2;
    while (bits < 8 && (py::ssize_t{1} << bits) < table.shape(0)) ++bits;
    if (table.shape(0) != (py::ssize_t{1} << bits)) refuse("table must hold 2^bits levels, for 2 to 8 bits");
    int16_t all[256] = {};
    for (py::ssize_t i = 0; i < table.shape(0); ++i) {
        check_range(levels[i], 0, 32767, "a level");
        all[i] = levels[i];
    }
    return heads(left, bits, 0, all, right, right_bits, right_zero, scale, false, out, threads);
}

}  // namespace

void bind_products(py::module_& m) {
    py::class_<PackedWeight>(m, "PackedWeight")
        .def_property_readonly("shape", [](const PackedWeight& w) { return py::make_tuple(w.right.n, w.right.k); })
        .def_property_readonly("bits", [](const PackedWeight& w) { return w.right.bits; })
        .def_property_readonly("activation_bits", [](const PackedWeight& w) { return w.right.left_bits; })
        .def_property_readonly("isa", [](const PackedWeight& w) { return isa_name(w.right.kernels->isa); })
        .def_property_readonly("nbytes", [](const PackedWeight& w) { return w.right.panels * w.right.panel_bytes(); });
    m.def("pack_weight", pack_weight, py::arg("codes"), py::arg("bits"), py::arg("zero"), py::arg("activation_bits") = 8);
    m.def("linear", linear, py::arg("codes"), py::arg("packed"), py::arg("za"), py::arg("scale") = py::none(),
          py::arg("bias") = py::none(), py::arg("out") = py::none(), py::arg("threads") = 1);
    m.def("matmul", matmul, py::arg("left"), py::arg("right"), py::arg("left_bits"), py::arg("right_bits"),
          py::arg("left_zero"), py::arg("right_zero"), py::arg("scale") = py::none(), py::arg("transposed") = false,
          py::arg("out") = py::none(), py::arg("threads") = 1);
    m.def("matmul_levels", matmul_levels, py::arg("left"), py::arg("table"), py::arg("right"), py::arg("right_bits"),
          py::arg("right_zero"), py::arg("scale") = py::none(), py::arg("out") = py::none(), py::arg("threads") = 1);
    m.def("pair_steps", [](int weight_bits, int activation_bits) {
        check_range(weight_bits, 2, 8, "weight_bits");
        check_range(activation_bits, 2, 8, "activation_bits");
        return pair_steps(weight_bits, activation_bits);
    }, py::arg("weight_bits"), py::arg("activation_bits"));
}

}  // namespace halfbyte
