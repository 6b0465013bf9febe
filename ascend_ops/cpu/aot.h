// What a kernel of ops.Custom(func_type="aot") receives: pointers, ranks, shapes and dtype names of inputs, then outputs.
// A kernel returns 0, or the number of the check that failed; MindSpore turns that into an error that names the function.
#pragma once
#include <cstdint>
#include <cstring>

struct Args {
  void **data;
  int *ranks;
  int64_t **shapes;
  const char **dtypes;

  template <class Element>
  Element *as(int i) const {
    return static_cast<Element *>(data[i]);
  }
  float *f32(int i) const { return as<float>(i); }
  int32_t *i32(int i) const { return as<int32_t>(i); }
  int64_t dim(int i, int axis) const { return shapes[i][axis]; }
  int64_t count(int i) const {
    int64_t n = 1;
    for (int axis = 0; axis < ranks[i]; ++axis) n *= shapes[i][axis];
    return n;
  }
  bool is(int i, const char *dtype) const { return std::strcmp(dtypes[i], dtype) == 0; }
};
