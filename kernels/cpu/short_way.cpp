#include "short_way.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

namespace hpcai::cpu {
namespace {

constexpr int kOperations = 4;
const char* const kNames[kOperations] = {"sum", "mean", "max", "min"};  // their places are those in OPERATIONS of hpcai/comm/call.py, less 1
const Op kFolds[kOperations] = {SUM, SUM, MAX, MIN};
PyObject* names[kOperations];  // interned, as the texts in a program are
int bfloat16_number;

int type_of(PyArrayObject* x) {
    switch (PyArray_TYPE(x)) {
        case NPY_HALF: return F16;
        case NPY_FLOAT: return F32;
        case NPY_DOUBLE: return F64;
        case NPY_INT: case NPY_LONG: case NPY_LONGLONG: return PyArray_ITEMSIZE(x) == 8 ? I64 : I32;
        default: return PyArray_TYPE(x) == bfloat16_number ? BF16 : -1;
    }
}

int operation_of(PyObject* op) {
    for (int i = 0; i < kOperations; ++i)
        if (op == names[i]) return i;
    for (int i = 0; i < kOperations && PyUnicode_CheckExact(op); ++i)
        if (PyUnicode_CompareWithASCIIString(op, kNames[i]) == 0) return i;
    return -1;
}

// An array's shape in one number, 0 for one dimension, of which the length says all; as shape_code in hpcai/comm/call.py.
std::int64_t shape_code(PyArrayObject* x) {
    if (PyArray_NDIM(x) == 1) return 0;
    std::uint64_t code = std::uint64_t(PyArray_NDIM(x)) + 1;
    for (int i = 0; i < PyArray_NDIM(x); ++i) code = code * kShapeFactor + std::uint64_t(PyArray_DIM(x, i));
    return std::int64_t(code & ((std::uint64_t(1) << kShapeBits) - 1));
}

}  // namespace

bool prepare_short_way(PyObject* bfloat16) {
    if (PyArray_ImportNumPyAPI() < 0) return false;
    bfloat16_number = reinterpret_cast<PyArray_Descr*>(bfloat16)->type_num;
    for (int i = 0; i < kOperations; ++i) names[i] = PyUnicode_InternFromString(kNames[i]);
    return true;
}

// What is derived from numpy's array may mean something else by its elements, so that it goes the long way.
Status allreduce_shortly(Node& node, PyObject* object, PyObject* op) {
    if (node.caller != PyThread_get_thread_ident() || !short_way_open || Py_TYPE(object) != &PyArray_Type) return NOT_HERE;
    auto* x = reinterpret_cast<PyArrayObject*>(object);
    const int type = type_of(x), operation = operation_of(op);
    if (type < 0 || operation < 0 || !PyArray_ISCARRAY(x)) return NOT_HERE;  // in order, aligned, writeable, of native bytes
    std::int64_t key[kKey] = {};
    const auto n = std::size_t(PyArray_SIZE(x)), itemsize = std::size_t(PyArray_ITEMSIZE(x));
    key[VALID] = 1, key[KIND] = ALLREDUCE, key[COUNT] = std::int64_t(n), key[DTYPE] = type, key[OPERATION] = operation + 1;
    key[SHAPE] = shape_code(x);
    const long divisor = operation == 1 ? node.size() : 1;
    const Work work{ALLREDUCE, Type(type), kFolds[operation], divisor, 0, static_cast<unsigned char*>(PyArray_DATA(x)), n, itemsize};
    ++node.short_calls;
    PyThreadState* state = PyEval_SaveThread();
    const Status status = node.collective(work, key);
    PyEval_RestoreThread(state);
    return status;
}

}  // namespace hpcai::cpu
