// Tables of which Python states the same (tests/ops/test_tables.py compares). Each is a list, LIST(EACH), written once: an
// enumeration or a struct is made of it, and so are the names that module.cpp gives to Python.
#pragma once

#define HPCAI_MEMBER(NAME, ...) NAME,
#define HPCAI_FIELD(NAME, TYPE) TYPE NAME;
#define HPCAI_NAME(NAME, ...) #NAME,
