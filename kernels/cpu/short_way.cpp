#include "short_way.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

namespace hpcai::cpu {
namespace {

// Texts that Python gives, in the order of their numbers. They are interned, as the texts in a program are.
template <int kCount>
struct Names {
    PyObject* interned[kCount];
    const char* texts[kCount];

    bool prepare() {
        for (int i = 0; i < kCount; ++i)
            if (!(interned[i] = PyUnicode_InternFromString(texts[i]))) return false;
        return true;
    }
    int find(PyObject* name) const {
        for (int i = 0; i < kCount; ++i)
            if (name == interned[i]) return i;
        for (int i = 0; i < kCount && PyUnicode_CheckExact(name); ++i)
            if (PyUnicode_CompareWithASCIIString(name, texts[i]) == 0) return i;
        return -1;
    }
};

Names<6> kinds{{}, {"agree", "allreduce", "reduce_scatter", "allgather", "broadcast", "alltoall"}};  // as Kind
Names<5> operations{{}, {"", "sum", "mean", "max", "min"}};  // as OPERATIONS of hpcai/comm/call.py
const Op kFolds[] = {SUM, SUM, SUM, MAX, MIN};
constexpr int kMean = 2;

std::int64_t dtype_codes[NPY_NTYPES_LEGACY];  // -1: of another kind
int bfloat16_number;

std::int64_t dtype_code(PyArrayObject* x) {
    const int number = PyArray_TYPE(x);
    if (number == bfloat16_number) return BF16;
    return number >= 0 && number < NPY_NTYPES_LEGACY ? dtype_codes[number] : -1;
}

// An array's shape in one number, 0 for one dimension, of which the length says all; as shape_code in hpcai/comm/call.py.
std::int64_t shape_code(PyArrayObject* x) {
    if (PyArray_NDIM(x) == 1) return 0;
    std::uint64_t code = std::uint64_t(PyArray_NDIM(x)) + 1;
    for (int i = 0; i < PyArray_NDIM(x); ++i) code = code * kShapeFactor + std::uint64_t(PyArray_DIM(x, i));
    return std::int64_t(code & ((std::uint64_t(1) << kShapeBits) - 1));
}

}  // namespace

bool prepare_short_way(PyObject* bfloat16, const std::map<int, std::int64_t>& codes) {
    if (PyArray_ImportNumPyAPI() < 0) return false;
    bfloat16_number = reinterpret_cast<PyArray_Descr*>(bfloat16)->type_num;
    for (int i = 0; i < NPY_NTYPES_LEGACY; ++i) dtype_codes[i] = codes.count(i) ? codes.at(i) : -1;
    return kinds.prepare() && operations.prepare();
}

// What is derived from numpy's array may mean something else by its elements, so that it goes the long way.
Status collective_shortly(Node& node, PyObject* kind_name, PyObject* object, PyObject* op, PyObject* root) {
    if (node.caller != PyThread_get_thread_ident() || !short_way_open || Py_TYPE(object) != &PyArray_Type) return NOT_HERE;
    auto* x = reinterpret_cast<PyArrayObject*>(object);
    const int kind = kinds.find(kind_name), operation = operations.find(op);
    const std::int64_t code = dtype_code(x);
    if (kind <= AGREE || operation < 0 || code < 0 || !PyArray_ISCARRAY(x)) return NOT_HERE;  // aligned, writeable, native bytes
    const bool reduces = kind == ALLREDUCE || kind == REDUCE_SCATTER;
    if (reduces != (operation > 0) || (reduces && code > I64)) return NOT_HERE;
    const long chosen = PyLong_CheckExact(root) ? PyLong_AsLong(root) : -1;
    if (chosen < 0 || chosen >= node.size()) {
        PyErr_Clear();
        return NOT_HERE;
    }
    if (kind == ALLTOALL && (PyArray_NDIM(x) == 0 || PyArray_DIM(x, 0) != node.size())) return NOT_HERE;
    std::int64_t key[kKey] = {};
    const auto n = std::size_t(PyArray_SIZE(x)), itemsize = std::size_t(PyArray_ITEMSIZE(x));
    key[VALID] = 1, key[KIND] = kind, key[COUNT] = std::int64_t(n), key[DTYPE] = code, key[OPERATION] = operation;
    key[CHOICE] = chosen, key[SHAPE] = shape_code(x);
    const Work work{Kind(kind), reduces ? Type(code) : BYTES, kFolds[operation], operation == kMean ? node.size() : 1, int(chosen),
                    static_cast<unsigned char*>(PyArray_DATA(x)), n, itemsize};
    ++node.short_calls;
    PyThreadState* state = PyEval_SaveThread();
    const Status status = node.collective(work, key);
    PyEval_RestoreThread(state);
    return status;
}

}  // namespace hpcai::cpu
