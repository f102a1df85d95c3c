// PER_CPU: one binary for every x86-64. The function is compiled for three levels of the instruction set, and the loader picks
// the one that the processor can run. Elsewhere it is compiled once.
#pragma once
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define PER_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define PER_CPU
#endif
