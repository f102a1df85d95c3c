#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,f16c")
#define LANES v3
#include "lanes.hpp"
#endif
