#pragma once

#include <pybind11/pybind11.h>

namespace halfbyte {

void bind_products(pybind11::module_& m);
void bind_rows(pybind11::module_& m);
void bind_plan(pybind11::module_& m);

}  // namespace halfbyte
