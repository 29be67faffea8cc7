// Which instruction set the kernels use: the best that CPU and system have, or less by DSV3EXPORT_CPU_ISA.
//
// A source file is compiled for the instruction set that its name ends in (setup.py, which also links such files last:
// the linker keeps the first copy of an inline function), and is entered only where `isa()` allows it.
#pragma once

namespace dsv3 {

// In ascending order: each can do what those before it do.
//   avx2    AVX2, FMA, F16C
//   avx512  AVX-512 F, BW, DQ, VL, VNNI
//   amx     AMX tiles, int8 and bfloat16; AVX-512 BF16
enum class Isa { generic, avx2, avx512, amx };

const char* isa_name(Isa isa);

// The best of this machine; found once.
Isa machine_isa();

// The best of this machine, or what the environment variable DSV3EXPORT_CPU_ISA lowers it to; read at each call, so
// that kernels keep what they had when they were created. Throws an Error for another name.
Isa isa();

}  // namespace dsv3
