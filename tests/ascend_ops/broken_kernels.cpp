// Kernels that each break one rule of the emulation; test_emulation.py runs them by name.
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

const std::map<std::string, std::pair<int, void (*)(Kernel &)>> KERNELS = {
    {"fine",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 1.f, 64);
        Sync<HardEvent::V_MTE3>();
        DataCopy(Gm(), k.t, 64);
      }}},
    {"capacity: UB",
     {1,
      [](Kernel &k) {
        TBuf<TPosition::VECCALC> b;
        k.pipe.InitBuffer(b, 256 * 1024);
      }}},
    {"capacity: queue buffers", {1, [](Kernel &k) { k.pipe.InitBuffer(k.in, 9, 32); }}},
    {"capacity: buffers",
     {1,
      [](Kernel &k) {
        for (int i = 0; i < 64; ++i) {
          TBuf<TPosition::VECCALC> b;
          k.pipe.InitBuffer(b, 32);
        }
      }}},
    {"alignment: vector", {1, [](Kernel &k) { Duplicate(k.t[3], 1.f, 8); }}},
    {"alignment: DataCopy", {1, [](Kernel &k) { DataCopy(k.t[1], Gm(), 8); }}},
    {"length: part of a block", {1, [](Kernel &k) { DataCopy(k.t, Gm(), 3); }}},
    {"range: past GM", {1, [](Kernel &k) { DataCopy(k.t, Gm(4088), 16); }}},
    {"range: past a tensor", {1, [](Kernel &k) { Duplicate(k.t, 1.f, 65); }}},
    {"range: GetValue", {1, [](Kernel &k) { k.t.GetValue(64); }}},
    {"range: GlobalTensor", {1, [](Kernel &) { Gm().GetValue(4096); }}},
    {"uninitialised: scalar", {1, [](Kernel &k) { k.t.GetValue(0); }}},
    {"uninitialised: store", {1, [](Kernel &k) { DataCopy(Gm(), k.t, 8); }}},
    {"queue: no free buffer",
     {1,
      [](Kernel &k) {
        k.pipe.InitBuffer(k.in, 1, 32);
        k.in.AllocTensor<float>();
        k.in.AllocTensor<float>();
      }}},
    {"queue: empty",
     {1,
      [](Kernel &k) {
        k.pipe.InitBuffer(k.in, 1, 32);
        k.in.DeQue<float>();
      }}},
    {"queue: depth",
     {1,
      [](Kernel &k) {
        k.pipe.InitBuffer(k.in, 2, 32);
        for (int i = 0; i < 2; ++i) {
          auto x = k.in.AllocTensor<float>();
          k.in.EnQue(x);
        }
      }}},
    {"queue: left over",
     {1,
      [](Kernel &k) {
        k.pipe.InitBuffer(k.in, 1, 32);
        k.in.AllocTensor<float>();
      }}},
    {"queue: foreign tensor",
     {1,
      [](Kernel &k) {
        k.pipe.InitBuffer(k.in, 1, 32);
        k.in.EnQue(k.t);
      }}},
    {"sync: MTE2 S",
     {1,
      [](Kernel &k) {
        DataCopy(k.t, Gm(), 8);
        k.t.GetValue(0);
      }}},
    {"sync: MTE2 V",
     {1,
      [](Kernel &k) {
        DataCopy(k.t, Gm(), 8);
        Add(k.t[8], k.t, k.t, 8);
      }}},
    {"sync: V MTE3",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        DataCopy(Gm(), k.t, 8);
      }}},
    {"sync: S MTE3",
     {1,
      [](Kernel &k) {
        for (int i = 0; i < 8; ++i) k.t.SetValue(i, 1.f);
        DataCopy(Gm(), k.t, 8);
      }}},
    {"sync: S V",
     {1,
      [](Kernel &k) {
        for (int i = 0; i < 8; ++i) k.t.SetValue(i, 1.f);
        Add(k.t[8], k.t, k.t, 8);
      }}},
    {"sync: V S",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        k.t.GetValue(0);
      }}},
    {"sync: S MTE2",
     {1,
      [](Kernel &k) {
        DataCopy(k.t, Gm(), 8);
        Sync<HardEvent::MTE2_S>();
        k.t.GetValue(0);
        DataCopy(k.t, Gm(), 8);
      }}},
    {"sync: MTE3 MTE2",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        Sync<HardEvent::V_MTE3>();
        DataCopy(Gm(), k.t, 8);
        DataCopy(k.t, Gm(64), 8);
      }}},
    {"sync: MTE3 V",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        Sync<HardEvent::V_MTE3>();
        DataCopy(Gm(), k.t, 8);
        PipeBarrier<PIPE_V>();
        Duplicate(k.t, 0.f, 8);
      }}},
    {"sync: GM read back",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        PipeBarrier<PIPE_ALL>();
        DataCopy(Gm(), k.t, 8);
        Gm().GetValue(0);
      }}},
    {"barrier: read after write",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        Add(k.t[8], k.t, k.t, 8);
      }}},
    {"barrier: write after read",
     {1,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        PipeBarrier<PIPE_V>();
        Add(k.t[8], k.t, k.t, 8);
        Duplicate(k.t, 0.f, 8);
      }}},
    {"cores: both write",
     {2,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        PipeBarrier<PIPE_ALL>();
        DataCopy(Gm(), k.t, 8);
      }}},
    {"cores: one reads",
     {2,
      [](Kernel &k) {
        Duplicate(k.t, 0.f, 8);
        PipeBarrier<PIPE_ALL>();
        if (GetBlockIdx() == 0)
          DataCopy(Gm(), k.t, 8);
        else
          Gm().GetValue(7);
      }}},
    {"flags: wait alone", {1, [](Kernel &) { WaitFlag<HardEvent::MTE2_V>(EVENT_ID0); }}},
    {"flags: set alone", {1, [](Kernel &) { SetFlag<HardEvent::MTE2_V>(EVENT_ID0); }}},
};
}  // namespace

extern "C" const char *names() {
  static std::string all;
  if (all.empty())
    for (const auto &kernel : KERNELS) all += kernel.first + "\n";
  return all.c_str();
}

// The error of the kernel, or nullptr.
extern "C" const char *run_broken(const char *name) {
  static std::string error;
  emulation::TheWorld().gm.clear();
  gm = emulation::GmAllocate(4096 * sizeof(float));
  const auto &[blocks, function] = KERNELS.at(name);
  try {
    emulation::Launch(blocks, false, [f = function] {
      Kernel kernel;
      f(kernel);
    });
  } catch (const emulation::Error &broken) {
    error = broken.what();
    return error.c_str();
  }
  return nullptr;
}
