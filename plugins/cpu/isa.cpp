#include "isa.h"

#include <cstdlib>
#include <cstring>

#include "error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace dsv3 {
namespace {

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers found;
  __get_cpuid_count(leaf, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx);
  return found;
}

bool has(unsigned bits, std::initializer_list<int> wanted) {
  for (const int bit : wanted) {
    if ((bits >> bit & 1) == 0) return false;
  }
  return true;
}

// Which registers the system saves (XCR0); only with OSXSAVE.
unsigned saved_states() {
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux hands out tile registers on request only, once for a process.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa find() {
  const Registers basic = cpuid(1, 0), features = cpuid(7, 0), more = cpuid(7, 1);
  if (!has(basic.ecx, {12, 27, 28, 29})) return Isa::generic;  // FMA, OSXSAVE, AVX, F16C
  const unsigned saved = saved_states();
  if (!has(saved, {1, 2}) || !has(features.ebx, {5})) return Isa::generic;  // SSE and AVX state; AVX2
  if (!has(saved, {5, 6, 7})) return Isa::avx2;                               // masks and 512-bit registers
  if (!has(features.ebx, {16, 17, 30, 31}) || !has(features.ecx, {11})) return Isa::avx2;  // F, DQ, BW, VL; VNNI
  if (!has(saved, {17, 18}) || !has(features.edx, {22, 24, 25}) || !has(more.eax, {5})) return Isa::avx512;
  return may_use_tiles() ? Isa::amx : Isa::avx512;
}

#else

Isa find() { return Isa::generic; }

#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::amx: return "amx";
    case Isa::generic: break;
  }
  return "generic";
}

Isa machine_isa() {
  static const Isa found = find();
  return found;
}

Isa isa() {
  const char* wanted = std::getenv("DSV3EXPORT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return machine_isa();
  for (const Isa one : {Isa::generic, Isa::avx2, Isa::avx512, Isa::amx}) {
    if (std::strcmp(wanted, isa_name(one)) == 0) return one < machine_isa() ? one : machine_isa();
  }
  fail("DSV3EXPORT_CPU_ISA: expected generic, avx2, avx512 or amx, got ", wanted);
}

}  // namespace dsv3
