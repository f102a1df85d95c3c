#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
// False alarms about the "undefined" operands in GCC 12's own headers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define LANES v4
#define LANES_512  // a macro of its own: GCC does not set __AVX512BW__ by the pragma in C++
#include "lanes.hpp"
#endif
