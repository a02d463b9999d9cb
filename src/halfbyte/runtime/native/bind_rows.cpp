// Python's side of what is done element by element and row by row.
#include "arrays.h"
#include "bind.h"
#include "kernels.h"
#include "pool.h"
#include "rowwise.h"

namespace halfbyte {
namespace {

py::ssize_t last_size(const py::array& x, const char* name) {
    if (x.ndim() == 0 || x.shape(x.ndim() - 1) == 0) refuse(std::string(name) + " must have a last dimension");
    return x.shape(x.ndim() - 1);
}

const float* floats(const py::array& x, const char* name) { return pointer<float>(x, name, shape_of(x)); }

// scale, zero, bits, offset -> what becomes of a float.
Uniform uniform(float scale, int zero, int bits, float offset) {
    check_range(bits, 2, 8, "bits");
    if (!(scale > 0.0F) || scale > 3.0e38F) refuse("scale must be positive and finite");
    return {scale, offset, static_cast<float>(zero), static_cast<float>((1 << bits) - 1)};
}

const uint8_t* prefix_table(const py::array& table) { return pointer<uint8_t>(table, "table", {65536}); }

template <class Out, class Run>
py::array run(const py::array& x, const py::object& out, const Run& work) {
    py::array result = output<Out>(out, "out", shape_of(x));
    Out* to = static_cast<Out*>(result.mutable_data());
    const py::gil_scoped_release released;
    work(to);
    return result;
}

// A function that goes row by row.
Source row_source(const py::array& x, Source::Kind kind) {
    const py::ssize_t n = last_size(x, "x");
    Source s{};
    s.kind = kind;
    s.x = floats(x, "x");
    s.columns = static_cast<size_t>(n);
    s.rows = static_cast<size_t>(x.size() / n);
    return s;
}

Source norm_source(const py::array& x, const py::object& weight, const py::object& bias, double eps) {
    Source s = row_source(x, Source::Kind::norm);
    const py::ssize_t n = static_cast<py::ssize_t>(s.columns);
    s.norm = {s.columns, pointer_or_null<float>(weight, "weight", {n}), pointer_or_null<float>(bias, "bias", {n}), eps};
    if (s.norm.weight == nullptr || s.norm.bias == nullptr) refuse("layer_norm needs a weight and a bias");
    return s;
}

Source softmax_source(const py::array& x, float factor) {
    Source s = row_source(x, Source::Kind::softmax);
    s.factor = factor;
    return s;
}

Source plain_source(const py::array& x, Source::Kind kind) {
    Source s{};
    s.kind = kind;
    s.x = floats(x, "x");
    s.columns = static_cast<size_t>(x.ndim() == 0 || x.size() == 0 ? 1 : x.shape(x.ndim() - 1));
    s.rows = static_cast<size_t>(x.size()) / s.columns;
    return s;
}

void check_threads(int threads) { check_range(threads, 1, most_threads, "threads"); }

py::array to_floats(const py::array& x, const Source& source, const py::object& out, int threads) {
    check_threads(threads);
    return run<float>(x, out, [&](float* to) { compute(source, to, threads); });
}

py::array to_codes(const py::array& x, const Source& source, const Target& target, const py::object& out, int threads) {
    check_threads(threads);
    return run<uint8_t>(x, out, [&](uint8_t* to) { compute_codes(source, target, to, threads); });
}

Target target_of(const Uniform& to) {
    Target target{};
    target.uniform = to;
    return target;
}

// A table and what is known of it.
struct Table {
    explicit Table(const py::array& table) : codes(prefix_table(table)), log(log_steps_of(codes)) {}
    const uint8_t* codes;
    LogSteps log;
};

Target target_of(const Table& table, float shift) {
    Target target{};
    target.table = PrefixTable{table.codes, shift, &table.log};
    return target;
}

}  // namespace

void bind_rows(py::module_& m) {
    using py::arg;
    using Kind = Source::Kind;
    const py::arg_v out = arg("out") = py::none(), threads = arg("threads") = 1, offset = arg("offset") = 0.0F;
    const py::arg_v factor = arg("factor") = 1.0F;

    m.def("quantize", [](const py::array& x, float scale, int zero, int bits, float beta, const py::object& to, int n) {
        return to_codes(x, plain_source(x, Kind::plain), target_of(uniform(scale, zero, bits, beta)), to, n);
    }, arg("x"), arg("scale"), arg("zero"), arg("bits"), offset, out, threads);
    m.def("quantize_table", [](const py::array& x, const py::array& table, float shift, const py::object& to, int n) {
        return to_codes(x, plain_source(x, Kind::plain), target_of(Table(table), shift), to, n);
    }, arg("x"), arg("table"), arg("shift") = 0.0F, out, threads);

    m.def("gelu", [](const py::array& x, const py::object& to, int n) {
        return to_floats(x, plain_source(x, Kind::gelu), to, n);
    }, arg("x"), out, threads);
    m.def("gelu_quantize", [](const py::array& x, float scale, int zero, int bits, float beta, const py::object& to, int n) {
        return to_codes(x, plain_source(x, Kind::gelu), target_of(uniform(scale, zero, bits, beta)), to, n);
    }, arg("x"), arg("scale"), arg("zero"), arg("bits"), offset, out, threads);
    m.def("gelu_quantize_table", [](const py::array& x, const py::array& table, float shift, const py::object& to, int n) {
        return to_codes(x, plain_source(x, Kind::gelu), target_of(Table(table), shift), to, n);
    }, arg("x"), arg("table"), arg("shift") = 0.0F, out, threads);

    m.def("layer_norm", [](const py::array& x, const py::object& w, const py::object& b, double eps, const py::object& to, int n) {
        return to_floats(x, norm_source(x, w, b, eps), to, n);
    }, arg("x"), arg("weight"), arg("bias"), arg("eps"), out, threads);
    m.def("layer_norm_quantize", [](const py::array& x, const py::object& w, const py::object& b, double eps, float scale,
                                    int zero, int bits, float beta, const py::object& to, int n) {
        return to_codes(x, norm_source(x, w, b, eps), target_of(uniform(scale, zero, bits, beta)), to, n);
    }, arg("x"), arg("weight"), arg("bias"), arg("eps"), arg("scale"), arg("zero"), arg("bits"), offset, out, threads);

    m.def("softmax", [](const py::array& x, float by, const py::object& to, int n) {
        return to_floats(x, softmax_source(x, by), to, n);
    }, arg("x"), factor, out, threads);
    m.def("softmax_quantize", [](const py::array& x, float scale, int zero, int bits, float by, float beta, const py::object& to, int n) {
        return to_codes(x, softmax_source(x, by), target_of(uniform(scale, zero, bits, beta)), to, n);
    }, arg("x"), arg("scale"), arg("zero"), arg("bits"), factor, offset, out, threads);
    m.def("softmax_quantize_table", [](const py::array& x, const py::array& table, float by, float shift, const py::object& to, int n) {
        return to_codes(x, softmax_source(x, by), target_of(Table(table), shift), to, n);
    }, arg("x"), arg("table"), factor, arg("shift") = 0.0F, out, threads);

    m.def("add", [](const py::array& x, const py::array& y, const py::object& to, int n) {
        Source s = plain_source(x, Kind::add);
        s.y = pointer<float>(y, "y", shape_of(x));
        return to_floats(x, s, to, n);
    }, arg("x"), arg("y"), out, threads);
}

}  // namespace halfbyte
