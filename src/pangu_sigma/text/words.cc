// jieba's accurate mode with HMM (github.com/fxsjy/jieba, MIT: `Tokenizer.cut`, `finalseg.cut`) over UTF-32 text, result for result:
// the same sums of doubles in the same order, and the same choice between equal sums. See words.py for the contract.
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace {
constexpr char32_t kFirstHan = 0x4E00, kLastHan = 0x9FD5;  // jieba's Han characters; rarer ones are words of their own
constexpr double kMinFloat = -3.14e100;                     // jieba's logarithm of 0
constexpr double kNoWord = -std::numeric_limits<double>::infinity();

bool IsHan(char32_t c) { return c >= kFirstHan && c <= kLastHan; }
bool IsDigit(char32_t c) { return c >= '0' && c <= '9'; }
bool IsAlnum(char32_t c) { return IsDigit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }
bool InBlock(char32_t c) {  // re_han_default
  return IsHan(c) || IsAlnum(c) || c == '+' || c == '#' || c == '&' || c == '.' || c == '_' || c == '%' || c == '-';
}

// Beginnings of the dictionary's words, in a hash table; one is named by its slot. Nearly all time goes into waiting for memory, so
// the table is sparse (few second looks), and a filter that stays in the cache answers most questions about what begins no word.
class Trie {
 public:
  static constexpr uint32_t kEmpty = ~0u, kNone = ~0u - 1;  // the empty beginning; no beginning of a word

  explicit Trie(size_t characters) : filter_(size_t{1} << (kFilterBits - 6)) {  // of all words together
    while ((size_t{1} << bits_) <= 2 * characters) ++bits_;
    slots_.resize(size_t{1} << bits_);
  }

  // `prefix` with `c` behind it, or kNone.
  uint32_t Find(uint32_t prefix, char32_t c) const {
    const uint64_t hash = Hash(prefix, c), bit = hash >> (64 - kFilterBits);
    if (!(filter_[bit / 64] >> (bit % 64) & 1)) return kNone;
    const uint32_t slot = Slot(hash, prefix, c);
    return slots_[slot].last ? slot : kNone;
  }

  uint32_t Add(uint32_t prefix, char32_t c) {
    const uint64_t hash = Hash(prefix, c), bit = hash >> (64 - kFilterBits);
    filter_[bit / 64] |= uint64_t{1} << (bit % 64);
    const uint32_t slot = Slot(hash, prefix, c);
    slots_[slot].shorter = prefix;
    slots_[slot].last = c;
    return slot;
  }

  double Score(uint32_t prefix) const { return slots_[prefix].score; }  // log probability of a word, kNoWord of others
  void SetScore(uint32_t prefix, double score) { slots_[prefix].score = score; }
  void AddToScores(double term) {
    for (Prefix &prefix : slots_) prefix.score += term;
  }

 private:
  struct Prefix {
    uint32_t shorter = 0;  // the prefix without its last character
    char32_t last = 0;     // 0: the slot is free
    double score = kNoWord;
  };
  static constexpr int kFilterBits = 22;  // 512 KiB

  static uint64_t Hash(uint32_t prefix, char32_t c) { return (uint64_t{prefix} << 21 | c) * 0x9E3779B97F4A7C15u; }

  size_t Slot(uint64_t hash, uint32_t prefix, char32_t c) const {
    size_t slot = hash >> (64 - bits_);
    while (slots_[slot].last && (slots_[slot].shorter != prefix || slots_[slot].last != c)) slot = (slot + 1) & (slots_.size() - 1);
    return slot;
  }

  int bits_ = 1;
  std::vector<Prefix> slots_;
  std::vector<uint64_t> filter_;
};

enum State { B, E, M, S };  // first, last, middle character of a word; a word of its own
constexpr State kBefore[4][2] = {{E, S}, {B, M}, {B, M}, {E, S}};  // of equals, jieba takes the second

struct Model {
  Trie trie;
  double unknown;        // log probability of a character that is no word
  const double *start;   // [4]
  const double *change;  // [4, 4] from, to
  const double *emit;    // [4, kLastHan - kFirstHan + 1]
};

class Cutter {
 public:
  Cutter(const Model &model, const char32_t *text, char32_t *out) : model_(model), text_(text), begin_(out), out_(out) {}

  size_t Cut(size_t n) {
    route_.resize(n + 1);
    for (size_t i = 0, j; i < n; i = j) {
      j = i + 1;
      if (InBlock(text_[i])) {
        while (j < n && InBlock(text_[j])) ++j;
        Block(i, j);
      } else {
        if (text_[i] == '\r' && j < n && text_[j] == '\n') ++j;
        Word(i, j);
      }
    }
    return out_ - begin_;
  }

 private:
  struct Step {
    double score;  // of the best words from here to the end of the block
    size_t end;    // of the first of them
  };

  void Word(size_t i, size_t j) {
    if (out_ != begin_) *out_++ = ' ';
    for (; i < j; ++i) *out_++ = text_[i] == ' ' ? 0x2582 : text_[i] == '\n' ? 0x2583 : text_[i];
  }

  void Block(size_t begin, size_t end) {  // Tokenizer.__cut_DAG
    route_[end] = {0.0, end};
    for (size_t i = end; i-- > begin;) {
      Step best = {model_.unknown + route_[i + 1].score, i + 1};
      bool found = false;
      uint32_t prefix = Trie::kEmpty;
      for (size_t j = i; j < end && (prefix = model_.trie.Find(prefix, text_[j])) != Trie::kNone; ++j) {
        const double word = model_.trie.Score(prefix), score = word + route_[j + 1].score;
        if (word == kNoWord || (found && score < best.score)) continue;
        best = {score, j + 1};
        found = true;
      }
      route_[i] = best;
    }
    size_t singles = begin;  // characters from here to i are words of their own so far
    for (size_t i = begin; i < end; i = route_[i].end) {
      if (route_[i].end - i == 1) continue;
      Singles(singles, i);
      Word(i, route_[i].end);
      singles = route_[i].end;
    }
    Singles(singles, end);
  }

  void Singles(size_t begin, size_t end) {
    if (end - begin > 1 && !IsWord(begin, end)) {
      Unknown(begin, end);
    } else {
      for (size_t i = begin; i < end; ++i) Word(i, i + 1);
    }
  }

  bool IsWord(size_t begin, size_t end) const {
    uint32_t prefix = Trie::kEmpty;
    for (size_t i = begin; i < end; ++i) {
      prefix = model_.trie.Find(prefix, text_[i]);
      if (prefix == Trie::kNone) return false;
    }
    return model_.trie.Score(prefix) != kNoWord;
  }

  void Unknown(size_t begin, size_t end) {  // finalseg.cut
    for (size_t i = begin, j; i < end; i = j) {
      j = i + 1;
      if (IsHan(text_[i])) {
        while (j < end && IsHan(text_[j])) ++j;
        Hidden(i, j);
      } else if (IsAlnum(text_[i])) {  // [a-zA-Z0-9]+(?:\.\d+)?%?
        while (j < end && IsAlnum(text_[j])) ++j;
        if (j + 1 < end && text_[j] == '.' && IsDigit(text_[j + 1])) {
          for (++j; j < end && IsDigit(text_[j]);) ++j;
        }
        if (j < end && text_[j] == '%') ++j;
        Word(i, j);
      } else {
        while (j < end && !IsHan(text_[j]) && !IsAlnum(text_[j])) ++j;
        Word(i, j);
      }
    }
  }

  void Hidden(size_t begin, size_t end) {  // finalseg.__cut, finalseg.viterbi
    const size_t n = end - begin;
    before_.resize(n);
    states_.resize(n);
    std::array<double, 4> score, last;
    for (int y = 0; y < 4; ++y) score[y] = model_.start[y] + Emit(y, text_[begin]);
    for (size_t t = 1; t < n; ++t) {
      last = score;
      for (int y = 0; y < 4; ++y) {
        const State a = kBefore[y][0], b = kBefore[y][1];
        const double emit = Emit(y, text_[begin + t]);
        const double with_a = last[a] + model_.change[4 * a + y] + emit, with_b = last[b] + model_.change[4 * b + y] + emit;
        before_[t][y] = with_b >= with_a ? b : a;
        score[y] = with_b >= with_a ? with_b : with_a;
      }
    }
    states_[n - 1] = score[S] >= score[E] ? S : E;
    for (size_t t = n; --t > 0;) states_[t - 1] = before_[t][states_[t]];
    size_t first = begin;
    for (size_t i = begin; i < end; ++i) {
      const State state = states_[i - begin];
      if (state == B) first = i;
      if (state == E) Word(first, i + 1);
      if (state == S) Word(i, i + 1);
    }
  }

  double Emit(int state, char32_t c) const { return model_.emit[state * (kLastHan - kFirstHan + 1) + (c - kFirstHan)]; }

  const Model &model_;
  const char32_t *text_;
  char32_t *begin_, *out_;
  std::vector<Step> route_;
  std::vector<std::array<State, 4>> before_;
  std::vector<State> states_;
};
}  // namespace

// dictionary: jieba's, n characters, lines "word frequency tag\n". The three tables must live as long as the model.
extern "C" const void *NewModel(const char32_t *dictionary, size_t n, const double *start, const double *change, const double *emit) {
  size_t characters = 0;
  for (size_t i = 0; i < n; ++i) {
    for (; dictionary[i] != ' '; ++i) ++characters;
    while (dictionary[i] != '\n') ++i;
  }
  auto *model = new Model{Trie(characters), 0.0, start, change, emit};
  double total = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t prefix = Trie::kEmpty;
    for (; dictionary[i] != ' '; ++i) prefix = model->trie.Add(prefix, dictionary[i]);
    double frequency = 0;
    for (++i; IsDigit(dictionary[i]); ++i) frequency = 10 * frequency + (dictionary[i] - '0');
    if (frequency > 0) model->trie.SetScore(prefix, std::log(frequency));
    total += frequency;
    while (dictionary[i] != '\n') ++i;
  }
  model->unknown = -std::log(total);
  model->trie.AddToScores(model->unknown);
  return model;
}

// Write the words of text[n], blanks between them, to out[2 n]; the length of what was written.
extern "C" size_t CutWords(const void *model, const char32_t *text, size_t n, char32_t *out) {
  return Cutter(*static_cast<const Model *>(model), text, out).Cut(n);
}
