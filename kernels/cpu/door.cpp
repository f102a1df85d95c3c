// Door: a verb behind its check, as hpcai/ops/door.py declares it, for calls like those that were let in before.
//
//     Door(verb, check, bind, count, arrays, scalars, apart)
//
// `check(args)` looks at everything and raises, or gives the limits of the values of arrays that have some. What it let in is
// remembered by dtypes, shapes and the scalars that shapes depend on. A call that is like one of these, whose memory is as declared,
// whose arrays lie apart and whose values are below their limits, goes to the verb without it; every other one is checked. So the
// door lets nothing in that `check` would not, and says nothing itself. Between kernels that sweep the caches, Python's way
// through takes 10 to 20 us, this one 1.
#include "door.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>
#include <structmember.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace hpcai::cpu {
namespace {

struct ArrayRule { HPCAI_ARRAY_RULE(HPCAI_FIELD) };
struct ScalarRule { HPCAI_SCALAR_RULE(HPCAI_FIELD) };

struct Pair {
    Py_ssize_t a, b;  // places of arguments
};

using Key = std::vector<std::uint64_t>;

// A kind of call, and what it refers to: so no other object can come to lie where these do.
struct Seen {
    Key key;
    std::vector<PyObject*> held;
    std::vector<std::uint64_t> limits;
};

struct Memory {
    std::vector<std::uint64_t> hashes;
    std::vector<Seen> calls;

    void clear() {
        for (Seen& call : calls)
            for (PyObject* object : call.held) Py_DECREF(object);
        calls.clear();
        hashes.clear();
    }
};

struct Rules {
    Py_ssize_t count;  // of arguments
    std::vector<ArrayRule> arrays;
    std::vector<ScalarRule> scalars;
    std::vector<Pair> apart;
    Key key;  // of the call at hand
    Memory memory;
};

struct Door {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *verb, *check, *bind, *dict;
    Rules* rules;
};

std::uint64_t hash_of(const Key& key) {
    std::uint64_t hash = key.size();
    for (std::uint64_t word : key) {
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    return hash;
}

PyArrayObject* array_of(PyObject* x) { return Py_TYPE(x) == &PyArray_Type ? reinterpret_cast<PyArrayObject*>(x) : nullptr; }

// True if an array's memory is as declared; its dtype and shape go into the key.
bool add_array(const ArrayRule& rule, PyObject* x, Key& key) {
    if (x == Py_None && rule.optional) {
        key.push_back(0);
        return true;
    }
    PyArrayObject* array = array_of(x);
    if (!array) return false;
    const int wanted = rule.written ? NPY_ARRAY_CARRAY : rule.strided && !rule.limited ? NPY_ARRAY_ALIGNED : NPY_ARRAY_CARRAY_RO;
    if ((PyArray_FLAGS(array) & wanted) != wanted) return false;
    const int dims = PyArray_NDIM(array);
    key.push_back(reinterpret_cast<std::uint64_t>(PyArray_DESCR(array)));
    key.push_back(std::uint64_t(dims));
    for (int i = 0; i < dims; ++i) key.push_back(std::uint64_t(PyArray_DIM(array, i)));
    return true;
}

// True if a scalar is of Python's own type that is wanted; one that shapes depend on goes into the key, type and value.
bool add_scalar(const ScalarRule& rule, PyObject* x, Key& key) {
    std::uint64_t value = 0;
    if (x == Py_None && rule.optional) {
    } else if (rule.letter == STR) {
        if (!PyUnicode_CheckExact(x)) return false;
        value = reinterpret_cast<std::uint64_t>(x);
    } else if (rule.letter == BOOL) {
        if (x != Py_True && x != Py_False) return false;
        value = x == Py_True;
    } else if (rule.letter == FLOAT && PyFloat_CheckExact(x)) {
        const double number = PyFloat_AS_DOUBLE(x);
        std::memcpy(&value, &number, sizeof value);
    } else if (!PyLong_CheckExact(x)) {
        return false;
    } else if (rule.letter == U32 || rule.letter == U64) {
        value = PyLong_AsUnsignedLongLong(x);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return false;
        }
        if (rule.letter == U32 && value >> 32) return false;
    } else {
        int overflow = 0;
        value = std::uint64_t(PyLong_AsLongLongAndOverflow(x, &overflow));
        if (overflow) return false;
    }
    if (rule.shaping) {
        key.push_back(reinterpret_cast<std::uint64_t>(Py_TYPE(x)));
        key.push_back(value);
    }
    return true;
}

struct Extent {
    const char *low, *high;
};

// The bytes from an array's first to its last.
Extent extent(PyArrayObject* array) {
    Extent bytes{PyArray_BYTES(array), PyArray_BYTES(array)};
    for (int i = 0; i < PyArray_NDIM(array); ++i) {
        const npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        if (PyArray_DIM(array, i) == 0) return {bytes.low, bytes.low};
        (reach < 0 ? bytes.low : bytes.high) += reach;
    }
    bytes.high += PyArray_ITEMSIZE(array);
    return bytes;
}

bool overlap(PyObject* one, PyObject* two) {
    PyArrayObject *a = array_of(one), *b = array_of(two);
    if (!a || !b) return false;  // one is None
    const Extent x = extent(a), y = extent(b);
    return x.low < y.high && y.low < x.high;
}

template <typename Whole>
bool all_below(const void* values, std::size_t n, std::uint64_t limit) {
    const Whole* x = static_cast<const Whole*>(values);
    Whole top = 0;
    for (std::size_t i = 0; i < n; ++i) top = x[i] > top ? x[i] : top;
    return n == 0 || top < limit;
}

// True if all values, whole numbers, are at least 0 and below the limit: a negative one is large without its sign.
bool below(PyArrayObject* array, std::uint64_t limit) {
    std::size_t n = 1;
    for (int i = 0; i < PyArray_NDIM(array); ++i) n *= std::size_t(PyArray_DIM(array, i));
    switch (PyArray_ITEMSIZE(array)) {
        case 1: return all_below<std::uint8_t>(PyArray_DATA(array), n, limit);
        case 2: return all_below<std::uint16_t>(PyArray_DATA(array), n, limit);
        case 4: return all_below<std::uint32_t>(PyArray_DATA(array), n, limit);
        case 8: return all_below<std::uint64_t>(PyArray_DATA(array), n, limit);
        default: return false;
    }
}

// True if the arguments are as declared, apart from dtypes and shapes, which are the key then.
bool plain(Rules& rules, PyObject* const* args) {
    rules.key.clear();
    for (const ArrayRule& rule : rules.arrays)
        if (!add_array(rule, args[rule.place], rules.key)) return false;
    for (const ScalarRule& rule : rules.scalars)
        if (!add_scalar(rule, args[rule.place], rules.key)) return false;
    for (const Pair& pair : rules.apart)
        if (overlap(args[pair.a], args[pair.b])) return false;
    return true;
}

const Seen* find(const Memory& memory, const Key& key, std::uint64_t hash) {
    for (std::size_t i = 0; i < memory.hashes.size(); ++i)
        if (memory.hashes[i] == hash && memory.calls[i].key == key) return &memory.calls[i];
    return nullptr;
}

bool within(const Rules& rules, const Seen& seen, PyObject* const* args) {
    std::size_t i = 0;
    for (const ArrayRule& rule : rules.arrays)
        if (rule.limited && args[rule.place] != Py_None && !below(array_of(args[rule.place]), seen.limits[i++])) return false;
    return true;
}

void remember(Rules& rules, PyObject* const* args, Key&& key, std::uint64_t hash, PyObject* limits) {
    Seen seen{std::move(key), {}, {}};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(limits); ++i) {
        seen.limits.push_back(PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(limits, i)));
        if (PyErr_Occurred()) return PyErr_Clear();
    }
    std::size_t limited = 0;
    for (const ArrayRule& rule : rules.arrays) {
        if (PyArrayObject* array = array_of(args[rule.place])) seen.held.push_back(reinterpret_cast<PyObject*>(PyArray_DESCR(array)));
        limited += rule.limited && args[rule.place] != Py_None;
    }
    if (limited != seen.limits.size()) return;
    for (const ScalarRule& rule : rules.scalars)
        if (rule.shaping) seen.held.push_back(args[rule.place]);
    for (PyObject* object : seen.held) Py_INCREF(object);
    if (rules.memory.calls.size() >= kMostSeen) rules.memory.clear();
    rules.memory.hashes.push_back(hash);
    rules.memory.calls.push_back(std::move(seen));
}

// The arguments by the check: its limits, or nullptr with its error set.
PyObject* checked(Door* door, PyObject* const* args) {
    PyObject* all = PyTuple_New(door->rules->count);
    if (!all) return nullptr;
    for (Py_ssize_t i = 0; i < door->rules->count; ++i) PyTuple_SET_ITEM(all, i, Py_NewRef(args[i]));
    PyObject* limits = PyObject_CallOneArg(door->check, all);
    Py_DECREF(all);
    return limits;
}

PyObject* enter(Door* door, PyObject* const* args) {
    Rules& rules = *door->rules;
    const bool is_plain = plain(rules, args);
    const std::uint64_t hash = is_plain ? hash_of(rules.key) : 0;
    const Seen* seen = is_plain ? find(rules.memory, rules.key, hash) : nullptr;
    if (!seen || !within(rules, *seen, args)) {
        Key key = rules.key;  // other calls may come while the check runs
        PyObject* limits = checked(door, args);
        if (!limits) return nullptr;
        if (is_plain && !seen && PyTuple_CheckExact(limits) && !find(rules.memory, key, hash))
            remember(rules, args, std::move(key), hash, limits);
        Py_DECREF(limits);
    }
    return PyObject_Vectorcall(door->verb, args, std::size_t(rules.count), nullptr);
}

// Names and defaults are Python's business: it gives all arguments in their order.
PyObject* bound(Door* door, PyObject* const* args, std::size_t nargs, PyObject* names) {
    PyObject* all = PyObject_Vectorcall(door->bind, args, nargs, names);
    if (!all) return nullptr;
    PyObject* result = nullptr;
    if (PyTuple_CheckExact(all) && PyTuple_GET_SIZE(all) == door->rules->count)
        result = enter(door, reinterpret_cast<PyTupleObject*>(all)->ob_item);
    else
        PyErr_SetString(PyExc_SystemError, "a door's bind gives a tuple of all arguments");
    Py_DECREF(all);
    return result;
}

PyObject* call(PyObject* self, PyObject* const* args, std::size_t nargsf, PyObject* names) {
    Door* door = reinterpret_cast<Door*>(self);
    const Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (nargs == door->rules->count && (!names || PyTuple_GET_SIZE(names) == 0)) return enter(door, args);
    return bound(door, args, std::size_t(nargs), names);
}

// ---- the type

void read(PyObject* x, bool& out) { out = x && PyObject_IsTrue(x) == 1; }
void read(PyObject* x, Py_ssize_t& out) { out = PyLong_AsSsize_t(x); }
void read(PyObject* x, char& out) {
    const char* text = x ? PyUnicode_AsUTF8(x) : nullptr;
    out = text ? *text : '?';
}

#define READ(NAME, TYPE) read(PyTuple_GetItem(rule, at++), one.NAME);
ArrayRule array_rule(PyObject* rule) {
    ArrayRule one;
    Py_ssize_t at = 0;
    HPCAI_ARRAY_RULE(READ)
    return one;
}
ScalarRule scalar_rule(PyObject* rule) {
    ScalarRule one;
    Py_ssize_t at = 0;
    HPCAI_SCALAR_RULE(READ)
    return one;
}

bool read_rules(Rules& rules, PyObject* arrays, PyObject* scalars, PyObject* apart) {
    for (Py_ssize_t i = 0; i < PyList_Size(arrays); ++i) rules.arrays.push_back(array_rule(PyList_GetItem(arrays, i)));
    for (Py_ssize_t i = 0; i < PyList_Size(scalars); ++i) rules.scalars.push_back(scalar_rule(PyList_GetItem(scalars, i)));
    for (Py_ssize_t i = 0; i < PyList_Size(apart); ++i) {
        PyObject* pair = PyList_GetItem(apart, i);
        rules.apart.push_back({PyLong_AsSsize_t(PyTuple_GetItem(pair, 0)), PyLong_AsSsize_t(PyTuple_GetItem(pair, 1))});
    }
    return !PyErr_Occurred();
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *verb, *check, *bind, *arrays, *scalars, *apart;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "OOOnO!O!O!", &verb, &check, &bind, &count, &PyList_Type, &arrays, &PyList_Type, &scalars, &PyList_Type,
                          &apart))
        return nullptr;
    PyObject* self = type->tp_alloc(type, 0);
    if (!self) return nullptr;
    Door* door = reinterpret_cast<Door*>(self);
    door->call = call;
    door->verb = Py_NewRef(verb);
    door->check = Py_NewRef(check);
    door->bind = Py_NewRef(bind);
    door->dict = PyDict_New();
    door->rules = new Rules{count, {}, {}, {}, {}, {}};
    if (door->dict && read_rules(*door->rules, arrays, scalars, apart)) return self;
    Py_DECREF(self);
    return nullptr;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Door* door = reinterpret_cast<Door*>(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(door->verb);
    Py_VISIT(door->check);
    Py_VISIT(door->bind);
    Py_VISIT(door->dict);
    return 0;
}

int clear(PyObject* self) {
    Door* door = reinterpret_cast<Door*>(self);
    Py_CLEAR(door->verb);
    Py_CLEAR(door->check);
    Py_CLEAR(door->bind);
    Py_CLEAR(door->dict);
    return 0;
}

void dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    if (Rules* rules = reinterpret_cast<Door*>(self)->rules) {
        rules->memory.clear();
        delete rules;
    }
    type->tp_free(self);
    Py_DECREF(type);
}

// As with a function: found on an instance it is called with the instance first.
PyObject* get(PyObject* self, PyObject* instance, PyObject*) {
    return instance && instance != Py_None ? PyMethod_New(self, instance) : Py_NewRef(self);
}

// Pickled by its name, as functions are.
PyObject* reduce(PyObject* self, PyObject*) { return PyObject_GetAttrString(self, "__qualname__"); }

PyObject* represent(PyObject* self) { return PyUnicode_FromFormat("<door of %R>", reinterpret_cast<Door*>(self)->verb); }

PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Door, call), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(Door, dict), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyMethodDef methods[] = {
    {"__reduce__", reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef attributes[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_descr_get, reinterpret_cast<void*>(get)},
    {Py_tp_repr, reinterpret_cast<void*>(represent)},
    {Py_tp_getattro, reinterpret_cast<void*>(PyObject_GenericGetAttr)},
    {Py_tp_setattro, reinterpret_cast<void*>(PyObject_GenericSetAttr)},
    {Py_tp_members, members},
    {Py_tp_getset, attributes},
    {Py_tp_methods, methods},
    {0, nullptr},
};

PyType_Spec spec = {
    "hpcai._native.Door",
    sizeof(Door),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    slots,
};

}  // namespace

bool add_door(PyObject* module) {
    if (PyArray_ImportNumPyAPI() < 0) return false;
    PyObject* type = PyType_FromSpec(&spec);
    const bool added = type && PyModule_AddObjectRef(module, "Door", type) == 0;
    Py_XDECREF(type);
    return added;
}

}  // namespace hpcai::cpu
