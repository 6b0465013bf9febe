// Work shared among the processor's cores by threads that wait for it. For regions of a few microseconds, one after another: a region
// costs half a microsecond, and does not wait for a thread that sleeps or has no core, as OpenMP's do: who is there takes the pieces.
#pragma once
#include <cstdint>

// Calls work(context, i) once for each piece i = 0 … pieces - 1, on several threads, and returns when all pieces are done. While one caller
// shares, a second caller does all of its pieces alone.
void Share(int64_t pieces, void (*work)(void *context, int64_t number), void *context);

template <class Work>
void Share(int64_t pieces, Work &&work) {
  Share(
      pieces, [](void *context, int64_t number) { (*static_cast<Work *>(context))(number); }, const_cast<void *>(static_cast<const void *>(&work)));
}

// Number of threads that share: the cores that this process may use, or fewer if OMP_NUM_THREADS says so.
extern "C" int64_t ShareThreads();
