// The quick way through the doors of hpcai/ops/door.py.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace hpcai::cpu {

// Adds the type `Door` to a module. False, with Python's error set, if it could not.
bool add_door(PyObject* module);

}  // namespace hpcai::cpu
