// NumPy arrays as checked pointers: a wrong type, shape or layout is a ValueError that names the argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

namespace halfbyte {

namespace py = pybind11;

[[noreturn]] inline void refuse(const std::string& message) { throw py::value_error(message); }

inline void check_range(long long value, long long low, long long high, const char* name) {
    if (value < low || value > high)
        refuse(std::string(name) + " must be from " + std::to_string(low) + " to " + std::to_string(high) + ", not " +
               std::to_string(value));
}

constexpr py::ssize_t any_size = -1;

inline std::string shape_text(const std::vector<py::ssize_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i)
        text += (i == 0 ? "" : ", ") + (shape[i] == any_size ? std::string("any") : std::to_string(shape[i]));
    return text + "]";
}

// `array` as a contiguous T of this shape; `any_size` stands for any length of a dimension.
template <class T>
void check_array(const py::array& array, const char* name, const std::vector<py::ssize_t>& shape) {
    if (!py::dtype::of<T>().is(array.dtype()) && !array.dtype().equal(py::dtype::of<T>()))
        refuse(std::string(name) + " must hold " + py::str(py::dtype::of<T>()).cast<std::string>() + ", not " +
               py::str(array.dtype()).cast<std::string>());
    std::vector<py::ssize_t> own(array.shape(), array.shape() + array.ndim());
    bool same = own.size() == shape.size();
    for (size_t i = 0; same && i < own.size(); ++i) same = shape[i] == any_size || shape[i] == own[i];
    if (!same) refuse(std::string(name) + " must have the shape " + shape_text(shape) + ", not " + shape_text(own));
    if ((array.flags() & py::array::c_style) == 0) refuse(std::string(name) + " must be contiguous");
    if (reinterpret_cast<uintptr_t>(array.data()) % sizeof(T) != 0) refuse(std::string(name) + " must be aligned");
}

template <class T>
const T* pointer(const py::array& array, const char* name, const std::vector<py::ssize_t>& shape) {
    check_array<T>(array, name, shape);
    return static_cast<const T*>(array.data());
}

// An optional array: null where it is None.
template <class T>
const T* pointer_or_null(const py::object& object, const char* name, const std::vector<py::ssize_t>& shape) {
    if (object.is_none()) return nullptr;
    if (!py::isinstance<py::array>(object)) refuse(std::string(name) + " must be a NumPy array or None");
    return pointer<T>(py::reinterpret_borrow<py::array>(object), name, shape);
}

// The array to fill: the one given, or a new one.
template <class T>
py::array output(const py::object& given, const char* name, const std::vector<py::ssize_t>& shape) {
    if (given.is_none()) return py::array(py::dtype::of<T>(), shape);
    if (!py::isinstance<py::array>(given)) refuse(std::string(name) + " must be a NumPy array or None");
    py::array array = py::reinterpret_borrow<py::array>(given);
    check_array<T>(array, name, shape);
    if (!array.writeable()) refuse(std::string(name) + " must be writeable");
    return array;
}

inline std::vector<py::ssize_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

// Codes beyond their bits would break the proofs on which the sums rest.
inline void check_codes(const uint8_t* codes, size_t count, int bits, const char* name) {
    unsigned all = 0;
    for (size_t i = 0; i < count; ++i) all |= codes[i];
    if ((all >> bits) != 0) refuse(std::string(name) + " must hold codes of " + std::to_string(bits) + " bits");
}

}  // namespace halfbyte
