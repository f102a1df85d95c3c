// The short way of collectives in shared memory: from Python's call to the barrier without a look by Python.
#pragma once
#include <Python.h>

#include <cstdint>
#include <map>

#include "node.hpp"

namespace hpcai::cpu {

constexpr std::uint64_t kShapeFactor = 1000003;
constexpr int kShapeBits = 61;

// False, with Python's error set, if numpy's C interface cannot be had. bfloat16: that dtype. codes: of numpy's own dtypes, by
// their numbers, as in the key of a call.
bool prepare_short_way(PyObject* bfloat16, const std::map<int, std::int64_t>& codes);

// Carries out the collective `kind` on the array x in place; op and root as in Python. NOT_HERE, and nothing is done: the long way
// must look at the call.
Status collective_shortly(Node& node, PyObject* kind, PyObject* x, PyObject* op, PyObject* root);

// Closed while a thread carries calls beside another (see hpcai/comm/door.py).
inline bool short_way_open = true;

}  // namespace hpcai::cpu
