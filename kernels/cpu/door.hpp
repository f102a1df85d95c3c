// The quick way through the doors of hpcai/ops/door.py.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>

#include "tables.hpp"

namespace hpcai::cpu {

constexpr std::size_t kMostSeen = 1024;  // kinds of call that a door remembers

// What a door is told of an array and of a scalar: tuples of these, in this order.
#define HPCAI_ARRAY_RULE(EACH) EACH(place, Py_ssize_t) EACH(written, bool) EACH(strided, bool) EACH(optional, bool) EACH(limited, bool)
#define HPCAI_SCALAR_RULE(EACH) EACH(place, Py_ssize_t) EACH(letter, char) EACH(optional, bool) EACH(shaping, bool)

// Annotations of scalars, and the letters by which rules know them.
#define HPCAI_SCALARS(EACH) EACH(INT, 'i') EACH(U32, 'u') EACH(U64, 'U') EACH(FLOAT, 'f') EACH(BOOL, 'b') EACH(STR, 's')
#define HPCAI_LETTER(NAME, LETTER) NAME = LETTER,
enum Letter : char { HPCAI_SCALARS(HPCAI_LETTER) };

// Adds the type `Door` to a module. False, with Python's error set, if it could not.
bool add_door(PyObject* module);

}  // namespace hpcai::cpu
