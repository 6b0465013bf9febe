// The operators of a network that reads new tokens of texts in a KV cache. See ascend_ops/few_rows.py for the contract.
//
// With few tokens the work is to read the weights, each once, by all cores; with many it is arithmetic, in tiles of registers. Both
// add in the same order: of a row it depends on the sizes of the matrices and of the row's own document only, not on how many rows
// are computed together, nor on the number of threads. So a text gets the same bits alone and in any batch, whole and token by token.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "share.h"

namespace {
constexpr int64_t kRows = 64;     // that are multiplied together, at most
constexpr int64_t kInner = 512;   // terms of a sum that are added at a time; the matrix columns of a piece stay in the cache
constexpr int64_t kWide = 128;    // columns of a piece: those of a tile of one row
constexpr int64_t kSlice = 256;   // ffn columns of a partial result; half as many of a small FFN, so that all cores have some
constexpr int64_t kChunk = 32;    // of which so many at a time
constexpr int64_t kQueries = 16;  // of a piece of attention

template <class W>
const auto &Products();
template <>
const auto &Products<float>() {
  return BestKernels().few_rows;
}
template <>
const auto &Products<Half>() {
  return BestKernels().few_rows_half;
}
template <>
const auto &Products<int8_t>() {
  return BestKernels().few_rows_byte;
}
template <>
const auto &Products<Nibbles>() {
  return BestKernels().few_rows_nibble;
}

constexpr int64_t kByte = 2, kNibble = 3;

// Calls work<W>() for the type of the elements of a matrix: 0 float, 1 Half, 2 int8_t with a scale for each row, 3 Nibbles.
template <class Work>
void ByKind(int64_t kind, Work work) {
  if (kind == 0) work(static_cast<const float *>(nullptr));
  if (kind == 1) work(static_cast<const Half *>(nullptr));
  if (kind == kByte) work(static_cast<const int8_t *>(nullptr));
  if (kind == kNibble) work(static_cast<const Nibbles *>(nullptr));
}

// The first element of a matrix.
template <class W>
auto Begin(const void *values, const float *scale) {
  if constexpr (std::is_same_v<W, Nibbles>)
    return Nibbles{static_cast<const uint16_t *>(values), scale};
  else
    return static_cast<const W *>(values);
}

int64_t Blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }

int64_t SliceOf(int64_t F) { return F < 8 * kSlice ? kSlice / 2 : kSlice; }
}  // namespace

// All fields have eight bytes, and the same names in few_rows.py.
struct Linear {
  const float *x;      // [rows, in]
  const void *weight;  // [in, out], or [out, in] if it is transposed
  const float *scale;  // of each row of the weight, or of each group of Nibbles, or null
  int64_t kind, in, out, transposed;
  const float *bias;  // [out], or null
  float *y;           // [rows, out]
  int64_t adds;       // 1: y += the result
};

namespace {
struct LinearPiece {
  const Linear *linear;
  const float *x;
  int64_t begin, end, first, last;  // rows, columns of the result
};

template <class W>
void Multiply(const LinearPiece &p) {
  const Linear &l = *p.linear;
  const auto weight = Begin<W>(l.weight, l.scale);
  const int64_t rows = p.end - p.begin, n = p.last - p.first;
  float *y = l.y + p.begin * l.out + p.first;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; ++c) y[r * l.out + c] = (l.adds ? y[r * l.out + c] : 0.0f) + (l.bias ? l.bias[p.first + c] : 0.0f);
  const float *x = p.x + p.begin * l.in;
  if (l.transposed) {
    constexpr int64_t kAhead = 8;
    Products<W>().dot(x, rows, weight + p.first * l.in, n, l.in, y, l.out, weight + (p.first + kAhead) * l.in);
    for (int64_t r = 0; l.kind == kByte && r < rows; ++r)
      for (int64_t c = 0; c < n; ++c) y[r * l.out + c] *= l.scale[p.first + c];
  } else {
    constexpr int64_t kAhead = 16;
    for (int64_t k = 0; k < l.in; k += kInner)
      Products<W>().sum_columns(x + k, l.in, rows, weight + k * l.out + p.first, std::min(kInner, l.in - k), n, l.out, y, l.out, kAhead);
  }
}

// x [rows, in] times the scale of each row of the weight.
void ScaleColumns(const float *x, const float *scale, int64_t rows, int64_t in, float *out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < in; ++k) out[r * in + k] = x[r * in + k] * scale[k];
}

int64_t ColumnsOfPiece(const Linear &l, int64_t linears) {
  if (l.transposed) return 256;
  // A row of a tile of Nibbles is short, and must not be shorter than a line of the cache: fewer and wider pieces.
  const bool nibbles = l.kind == kNibble;
  const int64_t unit = nibbles ? 64 : kPadded, wanted = Blocks((nibbles ? 2 : 4) * ShareThreads(), linears);
  const int64_t even = Blocks(Blocks(l.out, wanted), unit) * unit;
  return even < kWide ? std::max<int64_t>(even, 2 * kPadded) : even / kWide * kWide;
}
}  // namespace

// Computes several linear layers with the same number of rows in one share of work. The result of a transposed weight is multiplied by the
// scales, so such a layer has neither bias nor adds.
extern "C" void HostLinears(int64_t rows, const Linear *linears, int64_t count) {
  static thread_local std::vector<LinearPiece> pieces;
  static thread_local Scratch scaled;
  pieces.clear();
  int64_t floats = 0;
  for (const Linear *l = linears; l != linears + count; ++l) floats += l->kind == kByte && !l->transposed ? rows * l->in : 0;
  float *room = scaled.Get(floats);
  for (const Linear *l = linears; l != linears + count; ++l) {
    const float *x = l->x;
    if (l->kind == kByte && !l->transposed) {
      ScaleColumns(l->x, l->scale, rows, l->in, room);
      x = room;
      room += rows * l->in;
    }
    const int64_t width = ColumnsOfPiece(*l, count);
    for (int64_t r = 0; r < rows; r += kRows)
      for (int64_t c = 0; c < l->out; c += width) pieces.push_back({l, x, r, std::min(r + kRows, rows), c, std::min(c + width, l->out)});
  }
  const LinearPiece *all = pieces.data();
  Share(pieces.size(), [all](int64_t i) { ByKind(all[i].linear->kind, [&](auto *of) { Multiply<std::decay_t<decltype(*of)>>(all[i]); }); });
}

// y = LayerNorm(x), [rows, width] both; x += scale · e before, if there is an e.
extern "C" void HostNorm(int64_t rows, float *x, const float *gain, const float *bias, float *y, int64_t width, const float *scale, const float *e) {
  constexpr float kEpsilon = 1e-5f;
  const auto norm = [=](int64_t first) {
    for (int64_t r = first; r < std::min(first + kRows, rows); ++r) {
      float *x_r = x + r * width;
      if (e != nullptr) std::transform(x_r, x_r + width, e + r * width, x_r, [s = *scale](float a, float b) { return a + s * b; });
      BestKernels().norm(x_r, gain, bias, y + r * width, width, kEpsilon);
    }
  };
  if (rows <= kRows)
    norm(0);
  else
    Share(Blocks(rows, kRows), [&](int64_t i) { norm(i * kRows); });
}

struct Expert {
  const void *w1;  // [F, H]
  const float *scale1, *b1;
  const void *w2;  // [F, H]
  const float *scale2, *b2;
};

struct Ffn {
  const Expert *experts;
  int64_t kind, F, H;
  const Activation *activation;
  const float *x;  // [rows, H]
  float *y;        // [rows, H], += the result
};

namespace {
struct FfnPiece {
  const Expert *expert;
  int64_t begin, end;  // rows, sorted by expert
};

struct FfnPass {
  const Ffn &ffn;
  const float *x;           // sorted by expert
  const int32_t *order;     // row of the caller, or null
  int64_t rows;
  float *partials;  // [slices, rows, H]

  // out [rows of a piece, H] = the share of one slice, whose weights stay in the cache for all of them
  template <class W>
  void Slice(const FfnPiece &p, int64_t slice, float *out) const {
    for (int64_t r = p.begin; r < p.end; r += kRows) SliceOfRows<W>(*p.expert, r, std::min(kRows, p.end - r), slice, out + (r - p.begin) * ffn.H);
  }

  template <class W>
  void SliceOfRows(const Expert &e, int64_t begin, int64_t rows, int64_t slice, float *out) const {
    const int64_t F = ffn.F, H = ffn.H, width = SliceOf(F), last = std::min((slice + 1) * width, F);
    const auto w1 = Begin<W>(e.w1, e.scale1), w2 = Begin<W>(e.w2, e.scale2);
    alignas(64) float h[kRows * kChunk];
    std::fill_n(out, rows * H, 0.0f);
    for (int64_t f = slice * width; f < last; f += kChunk) {
      const int64_t n = std::min(kChunk, last - f);
      std::fill_n(h, rows * kChunk, 0.0f);
      Products<W>().dot(x + begin * H, rows, w1 + f * H, n, H, h, kChunk, w2 + f * H);
      for (int64_t r = 0; r < rows; ++r) {
        float *h_n = h + r * kChunk;
        for (int64_t i = 0; i < n; ++i) h_n[i] = h_n[i] * (ffn.kind == kByte ? e.scale1[f + i] : 1.0f) + e.b1[f + i];
        ffn.activation->value(h_n, h_n, n);
        for (int64_t i = 0; ffn.kind == kByte && i < n; ++i) h_n[i] *= e.scale2[f + i];
      }
      Products<W>().sum(h, kChunk, rows, w2 + f * H, n, H, out, w1 + (f + n) * H);
    }
  }

  float *RowOfResult(int64_t row) const { return ffn.y + (order ? order[row] : row) * ffn.H; }

  template <class W>
  void Whole(const FfnPiece &p) const {
    static thread_local Scratch floats;
    const int64_t rows = p.end - p.begin, H = ffn.H;
    float *sum = floats.Get(2 * rows * H), *share = sum + rows * H;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(sum + r * H, p.expert->b2, H * sizeof(float));
    for (int64_t slice = 0; slice < Blocks(ffn.F, SliceOf(ffn.F)); ++slice) {
      Slice<W>(p, slice, share);
      for (int64_t i = 0; i < rows * H; ++i) sum[i] += share[i];
    }
    for (int64_t r = 0; r < rows; ++r) {
      float *y = RowOfResult(p.begin + r);
      for (int64_t i = 0; i < H; ++i) y[i] += sum[r * H + i];
    }
  }

  void AddPartials(const Expert &expert, int64_t row) const {
    static thread_local Scratch floats;
    const int64_t H = ffn.H;
    float *sum = floats.Get(H), *y = RowOfResult(row);
    std::memcpy(sum, expert.b2, H * sizeof(float));
    for (int64_t slice = 0; slice < Blocks(ffn.F, SliceOf(ffn.F)); ++slice) {
      const float *share = partials + (slice * rows + row) * H;
      for (int64_t i = 0; i < H; ++i) sum[i] += share[i];
    }
    for (int64_t i = 0; i < H; ++i) y[i] += sum[i];
  }
};
}  // namespace

// The FFN of each row's expert; expert [rows], or null: all rows go to the first.
extern "C" void HostFfn(int64_t rows, const Ffn *ffn, const int32_t *expert) {
  static thread_local Scratch sorted, partials;
  static thread_local std::vector<int32_t> order;
  static thread_local std::vector<FfnPiece> blocks;
  const int64_t H = ffn->H, slices = Blocks(ffn->F, SliceOf(ffn->F));
  FfnPass pass{*ffn, ffn->x, nullptr, rows, nullptr};
  if (expert != nullptr && rows > 1) {
    order.resize(rows);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [=](int32_t a, int32_t b) { return expert[a] < expert[b]; });
    float *x = sorted.Get(rows * H);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(x + r * H, ffn->x + order[r] * H, H * sizeof(float));
    pass.x = x;
    pass.order = order.data();
  }
  const auto of_row = [&](int64_t row) { return ffn->experts + (expert == nullptr ? 0 : expert[pass.order ? pass.order[row] : row]); };  // the names of this thread's vectors would be others' in another thread
  const int64_t even = Blocks(Blocks(rows, 2 * ShareThreads()), kRows) * kRows, most = std::min(even, 2 * kRows);
  blocks.clear();
  for (int64_t r = 0, end; r < rows; r = end) {
    for (end = r + 1; end < std::min(r + most, rows) && of_row(end) == of_row(r);) ++end;
    blocks.push_back({of_row(r), r, end});
  }
  const FfnPiece *all = blocks.data();
  const int64_t count = blocks.size();
  ByKind(ffn->kind, [&](auto *of) {
    using W = std::decay_t<decltype(*of)>;
    if (count >= 2 * ShareThreads()) {
      Share(count, [&](int64_t i) { pass.template Whole<W>(all[i]); });
      return;
    }
    pass.partials = partials.Get(slices * rows * H);
    Share(count * slices, [&](int64_t i) {
      const FfnPiece &p = all[i / slices];
      // Slices of all rows, one after another: a piece's rows are beside each other in each.
      pass.template Slice<W>(p, i % slices, pass.partials + (i % slices * rows + p.begin) * H);
    });
    if (rows < 8)
      for (int64_t r = 0; r < rows; ++r) pass.AddPartials(*of_row(r), r);
    else
      Share(rows, [&](int64_t r) { pass.AddPartials(*of_row(r), r); });
  });
}

// Activation by its number: 0 fast_gelu, 1 tanh, 2 erf.
extern "C" const Activation *HostActivation(int64_t number) {
  const Activation *all[] = {&BestKernels().fast_gelu, &BestKernels().tanh, &BestKernels().erf};
  return all[number];
}

struct Attention {
  int64_t heads, width, length;  // n, d, and S of the cache
  const float *q, *k, *v;        // [rows, n·d]
  float *out;                    // [rows, n·d]
  float *keys, *values;          // [lanes, n, S, d]
  float scale;                   // of the scores
};

namespace {
struct Queries {  // tokens of one document beside each other
  int64_t begin, end;
};

struct AttentionPass {
  const Attention &a;
  const int32_t *lane, *at, *first;

  int64_t Cached(int64_t lane, int64_t head, int64_t at) const { return ((lane * a.heads + head) * a.length + at) * a.width; }

  void Append(int64_t t) const {
    for (int64_t head = 0; head < a.heads; ++head) {
      const int64_t to = Cached(lane[t], head, at[t]), from = (t * a.heads + head) * a.width;
      std::memcpy(a.keys + to, a.k + from, a.width * sizeof(float));
      std::memcpy(a.values + to, a.v + from, a.width * sizeof(float));
    }
  }

  void Attend(const Queries &p, int64_t head) const {
    static thread_local Scratch floats;
    const int64_t rows = p.end - p.begin, d = a.width, start = first[p.begin], count = at[p.end - 1] - start + 1;
    const int64_t stride = Blocks(count, kPadded) * kPadded;
    float *q = floats.Get(rows * (stride + 2 * d) + 16), *out = q + rows * d, *scores = out + rows * d;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < d; ++i) q[r * d + i] = a.q[((p.begin + r) * a.heads + head) * d + i] * a.scale;
    std::fill_n(out, rows * (d + stride), 0.0f);
    const float *keys = a.keys + Cached(lane[p.begin], head, start), *values = a.values + Cached(lane[p.begin], head, start);
    const auto &products = Products<float>();
    products.dot(q, rows, keys, count, d, scores, stride, keys + 8 * d);
    float total[kQueries];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t own = at[p.begin + r] - start + 1;
      total[r] = BestKernels().soften(scores + r * stride, own);
      std::fill_n(scores + r * stride + own, stride - own, 0.0f);
    }
    products.sum(scores, stride, rows, values, count, d, out, nullptr);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < d; ++i) a.out[((p.begin + r) * a.heads + head) * d + i] = out[r * d + i] / total[r];
  }
};
}  // namespace

// Puts keys and values of new tokens into the cache; lane, at [rows]: lane of each token, and its position there. Then `asking` of these
// tokens attend to the tokens of their document up to themselves. The first rows of q and out are theirs; asking_lane, asking_at, first
// [asking]: lane and position of each, and position of the first token of its document. Tokens of a lane are adjacent, in order.
extern "C" void HostAttention(int64_t rows, const Attention *attention, const int32_t *lane, const int32_t *at, int64_t asking,
                              const int32_t *asking_lane, const int32_t *asking_at, const int32_t *first) {
  static thread_local std::vector<Queries> blocks;
  const AttentionPass added{*attention, lane, at, nullptr}, pass{*attention, asking_lane, asking_at, first};
  if (rows < 8)
    for (int64_t t = 0; t < rows; ++t) added.Append(t);
  else
    Share(Blocks(rows, kQueries), [&](int64_t i) {
      for (int64_t t = i * kQueries; t < std::min((i + 1) * kQueries, rows); ++t) added.Append(t);
    });
  blocks.clear();
  for (int64_t t = 0, end; t < asking; t = end) {
    end = t + 1;
    while (end < std::min(t + kQueries, asking) && asking_lane[end] == asking_lane[t] && first[end] == first[t]) ++end;
    blocks.push_back({t, end});
  }
  const Queries *all = blocks.data();
  const int64_t count = blocks.size(), heads = attention->heads;
  Share(count * heads, [&](int64_t i) { pass.Attend(all[count - 1 - i / heads], i % heads); });  // the longest first
}
