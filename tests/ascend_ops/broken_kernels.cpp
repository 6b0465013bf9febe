// Kernels that each break one rule of the emulation; test_emulation.py runs them.
#include "kernel_operator.h"
using namespace AscendC;

namespace {
uint8_t *gm;

GlobalTensor<float> Gm(uint64_t at = 0) {
  GlobalTensor<float> tensor;
  tensor.SetGlobalBuffer(reinterpret_cast<float *>(gm), 4096);
  return tensor[at];
}

template <HardEvent event>
void Sync() {
  SetFlag<event>(EVENT_ID0);
  WaitFlag<event>(EVENT_ID0);
}

struct Kernel {
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  TQue<TPosition::VECIN, 1> in;
  LocalTensor<float> t;
  Kernel() {
    pipe.InitBuffer(buffer, 256);
    t = buffer.Get<float>();
  }
};

// The name begins with the rule that is broken. Rules of cores need two.
struct Broken {
  std::string name;
  void (*function)(Kernel &);
  Broken(const char *name, void (*function)(Kernel &)) : name(name), function(function) {}
};

const std::vector<Broken> KERNELS = {
    Broken("fine", [](Kernel &k) {
      Duplicate(k.t, 1.f, 64);
      Sync<HardEvent::V_MTE3>();
      DataCopy(Gm(), k.t, 64);
    }),
    Broken("capacity: UB", [](Kernel &k) {
      TBuf<TPosition::VECCALC> b;
      k.pipe.InitBuffer(b, 256 * 1024);
    }),
    Broken("capacity: queue buffers", [](Kernel &k) { k.pipe.InitBuffer(k.in, 9, 32); }),
    Broken("capacity: buffers", [](Kernel &k) {
      for (int i = 0; i < 64; ++i) {
        TBuf<TPosition::VECCALC> b;
        k.pipe.InitBuffer(b, 32);
      }
    }),
    Broken("alignment: vector", [](Kernel &k) { Duplicate(k.t[3], 1.f, 8); }),
    Broken("alignment: DataCopy", [](Kernel &k) { DataCopy(k.t[1], Gm(), 8); }),
    Broken("length: part of a block", [](Kernel &k) { DataCopy(k.t, Gm(), 3); }),
    Broken("range: past GM", [](Kernel &k) { DataCopy(k.t, Gm(4088), 16); }),
    Broken("range: past a tensor", [](Kernel &k) { Duplicate(k.t, 1.f, 65); }),
    Broken("range: GetValue", [](Kernel &k) { k.t.GetValue(64); }),
    Broken("range: GlobalTensor", [](Kernel &) { Gm().GetValue(4096); }),
    Broken("uninitialised: scalar", [](Kernel &k) { k.t.GetValue(0); }),
    Broken("uninitialised: store", [](Kernel &k) { DataCopy(Gm(), k.t, 8); }),
    Broken("queue: no free buffer", [](Kernel &k) {
      k.pipe.InitBuffer(k.in, 1, 32);
      k.in.AllocTensor<float>();
      k.in.AllocTensor<float>();
    }),
    Broken("queue: empty", [](Kernel &k) {
      k.pipe.InitBuffer(k.in, 1, 32);
      k.in.DeQue<float>();
    }),
    Broken("queue: depth", [](Kernel &k) {
      k.pipe.InitBuffer(k.in, 2, 32);
      for (int i = 0; i < 2; ++i) {
        auto x = k.in.AllocTensor<float>();
        k.in.EnQue(x);
      }
    }),
    Broken("queue: left over", [](Kernel &k) {
      k.pipe.InitBuffer(k.in, 1, 32);
      k.in.AllocTensor<float>();
    }),
    Broken("queue: foreign tensor", [](Kernel &k) {
      k.pipe.InitBuffer(k.in, 1, 32);
      k.in.EnQue(k.t);
    }),
    Broken("sync: MTE2 S", [](Kernel &k) {
      DataCopy(k.t, Gm(), 8);
      k.t.GetValue(0);
    }),
    Broken("sync: MTE2 V", [](Kernel &k) {
      DataCopy(k.t, Gm(), 8);
      Add(k.t[8], k.t, k.t, 8);
    }),
    Broken("sync: V MTE3", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      DataCopy(Gm(), k.t, 8);
    }),
    Broken("sync: S MTE3", [](Kernel &k) {
      for (int i = 0; i < 8; ++i) k.t.SetValue(i, 1.f);
      DataCopy(Gm(), k.t, 8);
    }),
    Broken("sync: S V", [](Kernel &k) {
      for (int i = 0; i < 8; ++i) k.t.SetValue(i, 1.f);
      Add(k.t[8], k.t, k.t, 8);
    }),
    Broken("sync: V S", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      k.t.GetValue(0);
    }),
    Broken("sync: S MTE2", [](Kernel &k) {
      DataCopy(k.t, Gm(), 8);
      Sync<HardEvent::MTE2_S>();
      k.t.GetValue(0);
      DataCopy(k.t, Gm(), 8);
    }),
    Broken("sync: MTE3 MTE2", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      Sync<HardEvent::V_MTE3>();
      DataCopy(Gm(), k.t, 8);
      DataCopy(k.t, Gm(64), 8);
    }),
    Broken("sync: MTE3 V", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      Sync<HardEvent::V_MTE3>();
      DataCopy(Gm(), k.t, 8);
      PipeBarrier<PIPE_V>();
      Duplicate(k.t, 0.f, 8);
    }),
    Broken("sync: GM read back", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      PipeBarrier<PIPE_ALL>();
      DataCopy(Gm(), k.t, 8);
      Gm().GetValue(0);
    }),
    Broken("barrier: read after write", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      Add(k.t[8], k.t, k.t, 8);
    }),
    Broken("barrier: write after read", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      PipeBarrier<PIPE_V>();
      Add(k.t[8], k.t, k.t, 8);
      Duplicate(k.t, 0.f, 8);
    }),
    Broken("cores: both write", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      PipeBarrier<PIPE_ALL>();
      DataCopy(Gm(), k.t, 8);
    }),
    Broken("cores: one reads", [](Kernel &k) {
      Duplicate(k.t, 0.f, 8);
      PipeBarrier<PIPE_ALL>();
      if (GetBlockIdx() == 0)
        DataCopy(Gm(), k.t, 8);
      else
        Gm().GetValue(7);
    }),
    Broken("flags: wait alone", [](Kernel &) { WaitFlag<HardEvent::MTE2_V>(EVENT_ID0); }),
    Broken("flags: set alone", [](Kernel &) { SetFlag<HardEvent::MTE2_V>(EVENT_ID0); }),
};
}  // namespace

extern "C" int count() {
  return KERNELS.size();
}

extern "C" const char *name_of(int number) {
  return KERNELS[number].name.c_str();
}

extern "C" const char *error_of(int number) {
  static std::string error;
  error = "[fine]";
  emulation::TheWorld().gm.clear();
  gm = emulation::GmAllocate(4096 * sizeof(float));
  const bool of_cores = KERNELS[number].name.rfind("cores", 0) == 0;
  try {
    emulation::Launch(of_cores ? 2 : 1, false, [number] {
      Kernel kernel;
      KERNELS[number].function(kernel);
    });
  } catch (const emulation::Error &broken) {
    error = broken.what();
  }
  return error.c_str();
}
