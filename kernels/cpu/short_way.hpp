// The short way of an all-reduce in shared memory: from Python's call to the barrier without a look by Python.
#pragma once
#include <Python.h>

#include <cstdint>

#include "node.hpp"

namespace hpcai::cpu {

constexpr std::uint64_t kShapeFactor = 1000003;
constexpr int kShapeBits = 61;

// False, with Python's error set, if numpy's C interface cannot be had. bfloat16: that dtype.
bool prepare_short_way(PyObject* bfloat16);

// Reduces the array x in place by "sum", "mean", "max" or "min". NOT_HERE, and nothing is done: the long way must look at the call.
Status allreduce_shortly(Node& node, PyObject* x, PyObject* op);

// Closed while a thread carries calls beside another (see hpcai/comm/door.py).
inline bool short_way_open = true;

}  // namespace hpcai::cpu
