// Python's side of a plan: it is built step by step, then run.
#include <pybind11/stl.h>

#include <optional>

#include "arrays.h"
#include "bind.h"
#include "pool.h"
#include "product_rows.h"
#include "steps.h"

namespace halfbyte {
namespace {

using Shape = std::vector<size_t>;
// (place, element size, offset, shape, strides)
using ViewTuple = std::tuple<int, size_t, ptrdiff_t, Shape, std::vector<ptrdiff_t>>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

View view_of(const ViewTuple& t) { return View{std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t), std::get<4>(t)}; }

template <class T>
std::vector<T> values(const py::object& object) {
    if (object.is_none()) return {};
    const auto array = object.cast<py::array_t<T, py::array::c_style | py::array::forcecast>>();
    return {array.data(), array.data() + array.size()};
}

class Builder {
  public:
    Builder(size_t arena_bytes, size_t input_bytes, size_t output_bytes, const py::array_t<uint8_t>& constants)
        : plan_(arena_bytes, input_bytes, output_bytes, constants.data(), static_cast<size_t>(constants.nbytes())) {}

    View read(const ViewTuple& t, size_t size) const { return checked(t, size, false); }
    // Where a step writes, apart from what it reads.
    template <class... Views>
    View write(const ViewTuple& t, size_t size, const Views&... reads) const {
        View view = checked(t, size, true);
        (Plan::check_apart(view, reads), ...);
        return view;
    }

    void rows(const std::string& kind, const ViewTuple& x, const ViewTuple& out, const py::object& weight,
              const py::object& bias, double eps, float factor, const py::object& uniform, const py::object& table, float shift) {
        RowStepOptions o{};
        o.kind = kind == "gelu" ? Source::Kind::gelu : kind == "norm" ? Source::Kind::norm
               : kind == "softmax" ? Source::Kind::softmax : Source::Kind::plain;
        if (o.kind == Source::Kind::plain && kind != "plain") refuse("no function of rows is called " + kind);
        o.coded = !uniform.is_none() || !table.is_none();
        o.x = read(x, 4);
        o.out = write(out, o.coded ? 1 : 4, o.x);
        o.weight = values<float>(weight);
        o.bias = values<float>(bias);
        o.eps = eps;
        o.factor = factor;
        if (!uniform.is_none()) o.uniform = uniform_of(uniform);
        o.table = values<uint8_t>(table);
        if (o.coded && uniform.is_none() && o.table.empty()) refuse("a table has 65536 codes");
        o.shift = shift;
        plan_.add(row_step(std::move(o)));
    }

    void map(const ViewTuple& x, const std::optional<ViewTuple>& y, const ViewTuple& out, const py::object& scale,
             const py::object& shift, bool relu, const py::object& uniform) {
        MapOptions o{};
        o.coded = !uniform.is_none();
        if (o.coded) o.uniform = uniform_of(uniform);
        o.x = read(x, 4);
        o.added = y.has_value();
        o.y = read(y.value_or(x), 4);
        o.out = write(out, o.coded ? 1 : 4, o.x, o.y);
        o.scale = values<float>(scale);
        o.shift = values<float>(shift);
        o.relu = relu;
        plan_.add(map_step(std::move(o)));
    }

    void linear(const ViewTuple& x, const ViewTuple& out, const py::array_t<uint8_t>& codes, int bits, const py::object& zeros,
                int left_bits, int32_t left_zero, const py::object& table, const py::object& scale, const py::object& bias) {
        check_range(left_bits, 1, 8, "left_bits");
        LinearOptions o{};
        o.x = read(x, 1);
        o.out = write(out, 4, o.x);
        o.table = values<int16_t>(table);
        o.bits = left_bits;
        o.zero = left_zero;
        require_table(o.table);
        o.right = packed(codes, bits, zeros, bits_of_left(o.table.empty() ? nullptr : o.table.data(), left_bits));
        o.scale = values<float>(scale);
        o.bias = values<float>(bias);
        plan_.add(linear_step(std::move(o)));
    }

    // codes [groups][O / groups, kh * kw * channels of a group]; depthwise: int32 weight [kh * kw, channels] instead.
    void conv(const ViewTuple& x, const ViewTuple& out, const py::list& codes, int bits, const py::list& zeros,
              std::array<size_t, 2> kernel, std::array<size_t, 2> stride, std::array<size_t, 2> dilation,
              std::array<size_t, 2> before, int left_bits, int32_t left_zero, const py::object& scale,
              const py::object& bias, const py::object& depthwise) {
        check_range(left_bits, 1, 8, "left_bits");
        ConvOptions o{};
        o.x = read(x, 1);
        o.out = write(out, 4, o.x);
        for (int i = 0; i < 2; ++i) {
            o.kernel[i] = kernel[i];
            o.stride[i] = stride[i];
            o.dilation[i] = dilation[i];
            o.before[i] = before[i];
        }
        o.bits = left_bits;
        o.zero = left_zero;
        o.scale = values<float>(scale);
        o.bias = values<float>(bias);
        if (!depthwise.is_none()) {
            plan_.add(depthwise_step(DepthwiseOptions{std::move(o), values<int32_t>(depthwise)}));
            return;
        }
        if (codes.size() != zeros.size()) refuse("zero points for each group are needed");
        for (size_t group = 0; group < codes.size(); ++group)
            o.rights.push_back(packed(codes[group].cast<py::array_t<uint8_t>>(), bits, zeros[group].cast<py::object>(), left_bits));
        plan_.add(conv_step(std::move(o)));
    }

    void heads(const ViewTuple& left, const ViewTuple& right, const ViewTuple& out, int left_bits, int right_bits,
               int32_t left_zero, int32_t right_zero, const py::object& table, float scale) {
        check_range(left_bits, 1, 8, "left_bits");
        check_range(right_bits, 1, 8, "right_bits");
        View a = read(left, 1), b = read(right, 1), to = write(out, 4, a, b);
        plan_.add(heads_step(HeadsOptions{std::move(a), std::move(b), std::move(to), left_bits, right_bits, left_zero,
                                          right_zero, values<int16_t>(table), scale}));
    }

    void copy(const ViewTuple& x, const ViewTuple& out) {
        const size_t size = std::get<1>(x);
        if (size != 1 && size != 4) refuse("elements have one byte or four");
        View from = read(x, size), to = write(out, size, from);
        plan_.add(copy_step(std::move(from), std::move(to)));
    }
    void fill(const ViewTuple& out, float value) { plan_.add(fill_step(write(out, 4), value)); }
    void binary(const std::string& kind, const ViewTuple& x, const ViewTuple& y, const ViewTuple& out) {
        View a = read(x, 4), b = read(y, 4), to = write(out, 4, a, b);
        plan_.add(binary_step(kind, std::move(a), std::move(b), std::move(to)));
    }
    void unary(const std::string& kind, const ViewTuple& x, const ViewTuple& out, float low, float high) {
        View from = read(x, 4), to = write(out, 4, from);
        plan_.add(unary_step(kind, std::move(from), std::move(to), low, high));
    }
    void mean(const ViewTuple& x, const ViewTuple& out, size_t axes) {
        View from = read(x, 4), to = write(out, 4, from);
        plan_.add(mean_step(std::move(from), std::move(to), axes));
    }
    void largest(const ViewTuple& x, const ViewTuple& out) {
        View from = read(x, 4), to = write(out, 4, from);
        plan_.add(largest_step(std::move(from), std::move(to)));
    }
    void rms(const ViewTuple& x, const ViewTuple& out, const py::object& weight, const py::object& bias, double eps) {
        View from = read(x, 4), to = write(out, 4, from);
        plan_.add(rms_step(std::move(from), std::move(to), values<float>(weight), values<float>(bias), eps));
    }

    py::array_t<float> run(const py::array& images, const std::vector<py::ssize_t>& result, int threads) const {
        check_range(threads, 1, most_threads, "threads");
        const float* from = pointer<float>(images, "images", shape_of(images));
        const py::ssize_t count = images.ndim() == 0 ? 0 : images.shape(0);
        if (count == 0 || static_cast<size_t>(images.nbytes()) != static_cast<size_t>(count) * plan_.bytes(in_image))
            refuse("images of another size");
        py::ssize_t elements = 1;
        std::vector<py::ssize_t> shape{count};
        for (py::ssize_t length : result) {
            elements *= length;
            shape.push_back(length);
        }
        if (static_cast<size_t>(elements) * 4 != plan_.bytes(in_result)) refuse("results of another size");
        py::array_t<float> out(shape);
        float* to = out.mutable_data();
        const py::gil_scoped_release released;
        plan_.run(from, static_cast<size_t>(count), to, threads);
        return out;
    }

    size_t steps() const { return plan_.steps(); }

  private:
    static Uniform uniform_of(const py::object& numbers) {
        const auto [scale, offset, zero, last] = numbers.cast<std::tuple<float, float, float, float>>();
        if (!(scale > 0) || !(last >= 1 && last <= 255)) refuse("a quantizer needs a positive scale and codes up to 255");
        return {scale, offset, zero, last};
    }

    View checked(const ViewTuple& t, size_t size, bool written) const {
        View view = view_of(t);
        plan_.check(view, size, written);
        return view;
    }

    static std::shared_ptr<const PackedRight> packed(const py::array_t<uint8_t>& codes, int bits, const py::object& zeros,
                                                     int left_bits) {
        check_range(bits, 1, 8, "bits");
        const uint8_t* from = pointer<uint8_t>(codes, "codes", {any_size, any_size});
        const size_t n = static_cast<size_t>(codes.shape(0)), k = static_cast<size_t>(codes.shape(1));
        check_range(codes.shape(0), 1, longest, "the number of rows");
        check_range(codes.shape(1), 1, longest, "the number of columns");
        check_codes(from, n * k, bits, "codes");
        const std::vector<int32_t> own = values<int32_t>(zeros);
        if (own.size() != n) refuse("a zero point for each row is needed");
        auto right = std::make_shared<PackedRight>();
        pack(RightSource{from, n, k, static_cast<ptrdiff_t>(k), 1, bits, own.data(), true}, left_bits, active_kernels(), *right);
        return right;
    }

    // The sum of this many codes fits into 32 bits.
    static constexpr long long longest = 1 << 23;

    Plan plan_;
};

}  // namespace

void bind_plan(py::module_& m) {
    py::class_<Builder>(m, "Plan", "A network as steps on views of memory.")
        .def(py::init<size_t, size_t, size_t, const py::array_t<uint8_t>&>())
        .def("rows", &Builder::rows)
        .def("map", &Builder::map)
        .def("linear", &Builder::linear)
        .def("conv", &Builder::conv)
        .def("heads", &Builder::heads)
        .def("copy", &Builder::copy)
        .def("fill", &Builder::fill)
        .def("binary", &Builder::binary)
        .def("unary", &Builder::unary)
        .def("mean", &Builder::mean)
        .def("largest", &Builder::largest)
        .def("rms", &Builder::rms)
        .def("run", &Builder::run)
        .def_property_readonly("steps", &Builder::steps);
}

}  // namespace halfbyte
