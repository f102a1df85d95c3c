// hpcai._native: the CPU kernels for Python. Arrays come as addresses (hpcai/ops/native.py checks them); the GIL is released.
#include <nanobind/nanobind.h>
#include <stdexcept>
#include "fold.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

static void must(bool known) {
    if (!known) throw std::invalid_argument("hpcai._native: no kernel for these element types");
}

NB_MODULE(_native, m) {
    using namespace hpcai::cpu;
    m.def("fold", [](int type, int op, Address acc, Address x, std::size_t n) {
        must(fold(Type(type), Op(op), reinterpret_cast<void*>(acc), reinterpret_cast<const void*>(x), n));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("cast", [](int to, int from, Address out, Address x, std::size_t n) {
        must(cast(Type(to), Type(from), reinterpret_cast<void*>(out), reinterpret_cast<const void*>(x), n));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("divide", [](int type, Address x, long divisor, std::size_t n) {
        must(divide(Type(type), reinterpret_cast<void*>(x), divisor, n));
    }, nb::call_guard<nb::gil_scoped_release>());
}
