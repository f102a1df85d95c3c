// hpcai._native: the CPU kernels for Python. Arrays come as addresses (hpcai/ops/native.py checks them); the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

#include "attention.hpp"
#include "compress.hpp"
#include "deadline.hpp"
#include "door.hpp"
#include "fold.hpp"
#include "hpcai/blocks.hpp"
#include "integers.hpp"
#include "lanes_table.hpp"
#include "node.hpp"
#include "rows.hpp"
#include "short_way.hpp"

namespace nb = nanobind;
using Address = std::uintptr_t;

static void must(bool known) {
    if (!known) throw std::invalid_argument("hpcai._native: no kernel for these element types");
}

// Have the node's long waits call `progress` while the counter, an array of one 64-bit integer, is above 0.
static void poll_messages(hpcai::cpu::Node& node, nb::object counter, Address address, nb::callable progress) {
    node.under_way = reinterpret_cast<const std::int64_t*>(address);
    node.progress = [counter, progress] {
        nb::gil_scoped_acquire held;
        try {
            progress();
        } catch (nb::python_error& error) {
            if (error.matches(PyExc_KeyboardInterrupt)) PyErr_SetInterrupt();  // is raised where the call returns to Python
            else error.discard_as_unraisable("hpcai: progress of messages during a wait");
        }
    };
}

static nb::tuple words(std::initializer_list<const char*> all) {
    nb::list out;
    for (const char* word : all) out.append(word);
    return nb::tuple(out);
}

// A format's name, the bits of a level, and where there are more than one the largest level and the one that stands for NaN.
template <class Form>
static nb::tuple levels(const char* name) {
    if constexpr (Form::kBits > 1) return nb::make_tuple(name, int(Form::kBits), double(Form::kLargest), int(Form::kNone));
    else return nb::make_tuple(name, int(Form::kBits));
}

// What Python states too, by name, for tests/ops/test_tables.py; members of enumerations are numbered from 0.
static nb::dict tables() {
    using namespace hpcai::cpu;
    nb::dict all, letters;
    nb::list formats;
#define LETTER(NAME, VALUE) letters[#NAME] = std::string(1, VALUE);
    HPCAI_SCALARS(LETTER)
#define FORMAT(NAME, FORM) formats.append(levels<hpcai::FORM>(#NAME));
    HPCAI_FORMATS(FORMAT)
    all["kinds"] = words({HPCAI_KINDS(HPCAI_NAME)});
    all["statuses"] = words({HPCAI_STATUSES(HPCAI_NAME)});
    all["dtypes"] = words({HPCAI_TYPES(HPCAI_NAME)});
    all["folds"] = words({HPCAI_OPS(HPCAI_NAME)});
    all["key"] = words({HPCAI_KEY(HPCAI_NAME)});
    all["shape_code"] = nb::make_tuple(kShapeFactor, kShapeBits);
    all["place_bits"] = kPlaceBits;
    all["desk_alignment"] = alignof(Desk);
    all["formats"] = nb::tuple(formats);
    all["block"] = hpcai::kTileElements;
    all["smallest_scale"] = double(hpcai::kSmallestScale);
    all["lane_types"] = words({HPCAI_LANE_TYPES(HPCAI_NAME)});
    all["lanes"] = words({kLanesVariable, kLanesV3, kLanesNone});
    all["scalars"] = letters;
    all["array_rule"] = words({HPCAI_ARRAY_RULE(HPCAI_NAME)});
    all["scalar_rule"] = words({HPCAI_SCALAR_RULE(HPCAI_NAME)});
    all["most_seen"] = kMostSeen;
    return all;
}

NB_MODULE(_native, m) {
    using namespace hpcai::cpu;
    nb::set_leak_warnings(false);  // what a program still holds when it ends goes with its process
    if (!hpcai::cpu::add_door(m.ptr())) throw nb::python_error();
    m.def("fold", [](int type, int op, Address acc, Address x, std::size_t n) {
        must(fold(Type(type), Op(op), reinterpret_cast<void*>(acc), reinterpret_cast<const void*>(x), n));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("cast", [](int to, int from, Address out, Address x, std::size_t n) {
        must(cast(Type(to), Type(from), reinterpret_cast<void*>(out), reinterpret_cast<const void*>(x), n));
    }, nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Node>(m, "Node")
        .def("__init__", [](Node* self, int rank, int size, Address desks, double timeout_s, bool crowded) {
            new (self) Node(rank, size, reinterpret_cast<void*>(desks), timeout_s, crowded);
        })
        .def_rw("timeout_s", &Node::timeout_s)
        .def_rw("checks", &Node::checks)
        .def_rw("caller", &Node::caller)
        .def_prop_ro("waiting_since", [](const Node& node) { return node.waiting_since.load(std::memory_order_relaxed); })
        .def_prop_ro("waited_s", [](const Node& node) { return node.waited_s.load(std::memory_order_relaxed); })
        .def("add_block", [](Node& node, std::int64_t id, Address base, std::size_t stride) {
            node.add_block(id, reinterpret_cast<void*>(base), stride);
        })
        .def("remove_block", &Node::remove_block)
        .def("missing", &Node::missing)
        .def("prove", &Node::prove)
        .def("reach", &Node::reach)
        .def("sleepers_can_fence", &Node::sleepers_can_fence)
        .def("rely_on_sleepers", &Node::rely_on_sleepers)
        .def_rw("staged_bytes", &Node::staged_bytes)
        .def("watch", &Node::watch)
        .def("ended", &Node::ended)
        .def("revoke", &Node::revoke)
        .def_prop_ro("revoked", &Node::revoked)
        .def("poll_messages", &poll_messages)
        .def_ro("short_calls", &Node::short_calls)
        .def("shortly", [](Node& node, nb::handle kind, nb::handle x, nb::handle op, nb::handle root) {
            return int(collective_shortly(node, kind.ptr(), x.ptr(), op.ptr(), root.ptr()));
        }, nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none())
        .def("agree", [](Node& node, std::vector<std::int64_t> key) {
            key.resize(kKey);
            nb::gil_scoped_release released;
            return int(node.agree(key.data()));
        })
        .def("collective", [](Node& node, int kind, int type, int op, long divisor, int root, Address x, std::size_t n,
                              std::size_t itemsize, std::vector<std::int64_t> key) {
            key.resize(kKey);
            nb::gil_scoped_release released;
            const Work work{Kind(kind), Type(type), Op(op), divisor, root, reinterpret_cast<unsigned char*>(x), n, itemsize};
            return int(node.collective(work, key.data()));
        });
    m.def("prepare_short_way", [](nb::handle bfloat16, const std::map<int, std::int64_t>& codes) {
        if (!prepare_short_way(bfloat16.ptr(), codes)) throw nb::python_error();
    });
    m.def("open_short_way", [](bool open) { short_way_open = open; });
    m.def("lanes", &lanes_name);
    m.def("tables", &tables);
    m.def("encode_blocks", [](int format, Address x, Address memory, std::size_t n, Address scales, Address packed, bool stochastic, std::uint32_t key) {
        return encode_blocks(format, reinterpret_cast<const float*>(x), reinterpret_cast<float*>(memory), n, reinterpret_cast<float*>(scales),
                             reinterpret_cast<std::uint8_t*>(packed), stochastic, key);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("decode_blocks", [](int format, bool add, Address out, std::size_t n, Address scales, Address packed, float weight) {
        must(decode_blocks(format, add, reinterpret_cast<float*>(out), n, reinterpret_cast<const float*>(scales),
                           reinterpret_cast<const std::uint8_t*>(packed), weight));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("select_above", [](Address x, Address memory, std::size_t n, std::uint32_t threshold, std::size_t room, Address index, Address value) {
        return select_above(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(memory), n, threshold, room,
                            reinterpret_cast<std::uint32_t*>(index), reinterpret_cast<float*>(value));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("cast_keeping", [](int to, Address out, Address x, Address memory, std::size_t n) {
        must(cast_keeping(Type(to), reinterpret_cast<void*>(out), reinterpret_cast<const float*>(x), reinterpret_cast<float*>(memory), n));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("widen_scaled", [](int from, bool add, Address out, Address x, std::size_t n, float weight) {
        must(widen_scaled(Type(from), add, reinterpret_cast<float*>(out), reinterpret_cast<const void*>(x), n, weight));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("block_tops", [](Address tops, Address x, Address memory, std::size_t n) {
        block_tops(reinterpret_cast<float*>(tops), reinterpret_cast<const float*>(x), reinterpret_cast<float*>(memory), n);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("encode_lanes", [](int lane_bytes, Address lanes, Address scales, Address memory, std::size_t n, int limit) {
        encode_lanes(lane_bytes, reinterpret_cast<void*>(lanes), reinterpret_cast<const float*>(scales), reinterpret_cast<float*>(memory), n, limit);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("decode_lanes", [](int lane_bytes, Address out, Address lanes, Address scales, std::size_t n, int offset, float factor) {
        decode_lanes(lane_bytes, reinterpret_cast<float*>(out), reinterpret_cast<const void*>(lanes), reinterpret_cast<const float*>(scales), n,
                     offset, factor);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("add_fixed", [](Address sums, Address x, std::size_t n, double per_unit) {
        add_fixed(reinterpret_cast<std::int64_t*>(sums), reinterpret_cast<const float*>(x), n, per_unit);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("from_fixed", [](Address out, Address sums, std::size_t n, double unit) {
        from_fixed(reinterpret_cast<float*>(out), reinterpret_cast<const std::int64_t*>(sums), n, unit);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("scatter", [](bool adding, Address out, Address index, Address value, std::size_t count, float weight) {
        scatter(adding, reinterpret_cast<float*>(out), reinterpret_cast<const std::uint32_t*>(index), reinterpret_cast<const float*>(value),
                count, weight);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("attention", [](Address y, Address norms, Address x, std::size_t sequences, std::size_t context, std::size_t heads, std::size_t width, float scale) {
        attention(reinterpret_cast<float*>(y), reinterpret_cast<float*>(norms), reinterpret_cast<const float*>(x), sequences, context, heads,
                  width, scale);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("attention_backward", [](Address dx, Address dy, Address y, Address norms, Address x, std::size_t sequences, std::size_t context,
                                   std::size_t heads, std::size_t width, float scale) {
        attention_backward(reinterpret_cast<float*>(dx), reinterpret_cast<const float*>(dy), reinterpret_cast<const float*>(y),
                           reinterpret_cast<const float*>(norms), reinterpret_cast<const float*>(x), sequences, context, heads, width, scale);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("bias_gelu", [](Address y, Address slope, Address bias, std::size_t rows, std::size_t columns) {
        bias_gelu(reinterpret_cast<float*>(y), reinterpret_cast<float*>(slope), reinterpret_cast<const float*>(bias), rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("multiply_and_sum", [](Address x, Address by, Address sums, std::size_t rows, std::size_t columns) {
        multiply_and_sum(reinterpret_cast<float*>(x), reinterpret_cast<const float*>(by), reinterpret_cast<float*>(sums), rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("column_sums", [](Address sums, Address x, std::size_t rows, std::size_t columns) {
        column_sums(reinterpret_cast<float*>(sums), reinterpret_cast<const float*>(x), rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("row_max", [](Address top, Address x, std::size_t rows, std::size_t columns) {
        row_max(reinterpret_cast<float*>(top), reinterpret_cast<const float*>(x), rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("row_exponentials", [](Address out, Address sums, Address x, Address top, std::size_t rows, std::size_t columns) {
        row_exponentials(reinterpret_cast<float*>(out), reinterpret_cast<double*>(sums), reinterpret_cast<const float*>(x),
                         reinterpret_cast<const float*>(top), rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("layer_norm", [](Address y, Address mean, Address inverse, Address x, Address weight, Address bias, std::size_t rows,
                           std::size_t columns, float epsilon) {
        layer_norm(reinterpret_cast<float*>(y), reinterpret_cast<float*>(mean), reinterpret_cast<float*>(inverse),
                   reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(weight), reinterpret_cast<const float*>(bias), rows, columns,
                   epsilon);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("layer_norm_backward", [](Address dx, Address dy, Address x, Address mean, Address inverse, Address weight, bool centred,
                                    std::size_t rows, std::size_t columns) {
        layer_norm_backward(reinterpret_cast<float*>(dx), reinterpret_cast<const float*>(dy), reinterpret_cast<const float*>(x),
                            reinterpret_cast<const float*>(mean), reinterpret_cast<const float*>(inverse),
                            reinterpret_cast<const float*>(weight), centred, rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("layer_norm_gradients", [](Address dweight, Address dbias, Address dy, Address x, Address mean, Address inverse,
                                     std::size_t rows, std::size_t columns) {
        layer_norm_gradients(reinterpret_cast<float*>(dweight), reinterpret_cast<float*>(dbias), reinterpret_cast<const float*>(dy),
                             reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(mean), reinterpret_cast<const float*>(inverse),
                             rows, columns);
    }, nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Deadline>(m, "Deadline").def(nb::init<double, int, std::string>()).def("call_off", &Deadline::call_off);
    m.attr("DESK_BYTES") = sizeof(Desk);
    m.def("fold_ranks", [](int type, int op, std::vector<Address> outs, std::vector<Address> xs, long divisor, std::size_t from, std::size_t to) {
        must(fold_ranks(Type(type), Op(op), reinterpret_cast<void* const*>(outs.data()), int(outs.size()),
                        reinterpret_cast<const void* const*>(xs.data()), int(xs.size()), divisor, from, to));
    }, nb::call_guard<nb::gil_scoped_release>());
    m.def("divide", [](int type, Address x, long divisor, std::size_t n) {
        must(divide(Type(type), reinterpret_cast<void*>(x), divisor, n));
    }, nb::call_guard<nb::gil_scoped_release>());
}
