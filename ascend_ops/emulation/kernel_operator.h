// Host emulation of the Ascend C subset that op_kernel/ uses. The kernel sources compile unchanged, with a C++17 compiler, against
// this header instead of CANN's of the same name. It executes them and enforces our reading of the documented rules (machine.h
// lists them). It is not CANN's simulator, it says nothing about time, and only a device can prove a kernel.
#pragma once
#include "instructions.h"

#define __aicore__
#define __global__
#define __gm__
#define GM_ADDR uint8_t *
#define REGISTER_TILING_DEFAULT(T) using EmulatedTiling = T
#define GET_TILING_DATA(name, address) \
  EmulatedTiling name;                 \
  std::memcpy(&name, address, sizeof(EmulatedTiling))

using half = _Float16;
