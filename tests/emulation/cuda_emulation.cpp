// Runs the threads, warps and blocks of a kernel: the other half of cuda_emulation.h, which says what is checked.
#include "cuda_emulation.h"

#include <stdio.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif
#if defined(__x86_64__) && !defined(STCLI_EMULATION_UCONTEXT)
#define STCLI_EMULATION_SWITCH
#else
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx, blockDim, gridDim;
__shared__ alignas(1024) unsigned char shared_memory[EMULATED_SHARED_BYTES];
extern unsigned char __start_emulated_shared[], __stop_emulated_shared[];

namespace emulation {

// ---- fibers ------------------------------------------------------------------------------------------------------

constexpr size_t STACK_BYTES = 256 << 10;

#ifdef STCLI_EMULATION_SWITCH
using Context = void*;
// Without the system calls of ucontext, 20 times as fast. Keeps the registers that a call preserves on the stack of
// the one that stops, and takes those of the other.
__attribute__((naked, noinline)) static void switch_context(Context*, Context) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
static Context new_context(char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK_BYTES - 64);
  *--top = nullptr;  // where `entry` would return to; it never does
  *--top = reinterpret_cast<void*>(entry);
  top -= 6;
  return top;
}
#else
using Context = ucontext_t*;
static void switch_context(Context* from, Context to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, to);
}
static Context new_context(char* stack, void (*entry)()) {
  ucontext_t* fresh = reinterpret_cast<ucontext_t*>(stack);
  getcontext(fresh);
  fresh->uc_stack.ss_sp = stack + sizeof(ucontext_t);
  fresh->uc_stack.ss_size = STACK_BYTES - sizeof(ucontext_t);
  fresh->uc_link = nullptr;
  makecontext(fresh, entry, 0);
  return fresh;
}
#endif

enum State { READY, AT_BARRIER, IN_WARP, DONE };
static const char* const KIND_NAMES[] = {"a shuffle", "a vote", "__syncwarp", "__match", "__reduce", "mma", "ldmatrix"};

struct Copy {
  void* to;
  const void* from;
  size_t bytes, given;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  uint3 index;
  State state;
  // Of a thread that waits: where, for which lanes, and with what.
  Kind kind;
  int line;
  unsigned mask;
  void* data;
  int vote;
  std::vector<Copy> open;                  // copies since the last commit
  std::vector<std::vector<Copy>> pending;  // committed groups, oldest first
};

static std::vector<Fiber> fibers;
static std::vector<int> ready;
static int num_threads, current, num_at_barrier, num_done;
static Context scheduler;
static uint64_t random_state;
static std::string error;
static void (*run_kernel)(void**);
static void** kernel_arguments;

static uint64_t draw() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

static std::string where() {
  return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
         std::to_string(blockIdx.z) + ")";
}

static void stop_running() {
  const int self = current;
  switch_context(&fibers[self].context, scheduler);
  threadIdx = fibers[self].index;
}

// Ends the launch: the fibers are left as they are.
[[noreturn]] static void fail(const std::string& what) {
  if (error.empty()) error = where() + ", thread " + std::to_string(current) + ": " + what;
  for (;;) stop_running();
}
void fail(const char* format, int number) {
  char text[200];
  snprintf(text, sizeof text, format, number);
  fail(std::string(text));
}

static void give_way() {
  ready.push_back(current);
  stop_running();
}

static void wake(int thread) {
  fibers[thread].state = READY;
  ready.push_back(thread);
}

int barrier(int line, int vote, int what) {
  static int joined[2];  // of the barrier that is being left: any, all
  static int count;
  Fiber& self = fibers[current];
  self.state = AT_BARRIER;
  self.line = line;
  self.vote = vote != 0;
  if (++num_at_barrier == num_threads) {
    joined[0] = count = 0;
    joined[1] = 1;
    for (int t = 0; t < num_threads; ++t) {
      if (fibers[t].line != line)
        fail("barriers at lines " + std::to_string(fibers[t].line) + " and " + std::to_string(line) + " met");
      joined[0] |= fibers[t].vote;
      joined[1] &= fibers[t].vote;
      count += fibers[t].vote;
    }
    num_at_barrier = 0;
    for (int t = 0; t < num_threads; ++t) wake(t);
  }
  stop_running();
  return what == 0 ? joined[0] : what == 1 ? joined[1] : count;
}

void collective(Kind kind, int line, unsigned mask, void* data, void (*compute)(void* const* lanes)) {
  const int lane = current % 32, first = current - lane;
  if (!(mask >> lane & 1))
    fail(std::string(KIND_NAMES[kind]) + " at line " + std::to_string(line) +
         " with a mask that lacks the lane itself");
  Fiber& self = fibers[current];
  self.kind = kind;
  self.line = line;
  self.mask = mask;
  self.data = data;
  self.state = IN_WARP;
  void* lanes[32] = {};
  bool whole = true;
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    if (first + l >= num_threads) fail(std::string(KIND_NAMES[kind]) + " with lanes that the block does not have");
    const Fiber& other = fibers[first + l];
    if (other.state == IN_WARP && (other.kind != kind || other.line != line || other.mask != mask) &&
        (other.mask >> lane & 1)) {
      fail("lanes " + std::to_string(lane) + " and " + std::to_string(l) + " wait for each other, one at " +
           KIND_NAMES[kind] + " of line " + std::to_string(line) + ", one at " + KIND_NAMES[other.kind] + " of line " +
           std::to_string(other.line));
    }
    if (other.state == DONE)
      fail(std::string(KIND_NAMES[kind]) + " at line " + std::to_string(line) + " names lane " + std::to_string(l) +
           ", which has finished");
    whole = whole && other.state == IN_WARP && other.kind == kind && other.line == line && other.mask == mask;
    lanes[l] = other.data;
  }
  if (whole) {
    compute(lanes);
    for (int l = 0; l < 32; ++l) {
      if (lanes[l]) wake(first + l);
    }
  }
  stop_running();
}

int lane_of_thread() { return current % 32; }

void maybe_give_way() {
  if (draw() % 4 == 0) give_way();
}

// ---- collectives of a warp ----------------------------------------------------------------------------------------

unsigned ballot(int line, unsigned mask, int predicate) {
  Exchange<unsigned> mine{predicate != 0, 0, 0};
  collective(VOTE, line, mask, &mine, [](void* const* given) {
    const Lanes<Exchange<unsigned>> lanes{given};
    unsigned bits = 0;
    for (int l = 0; l < 32; ++l) bits |= lanes[l] && lanes[l]->value ? 1u << l : 0;
    for (int l = 0; l < 32; ++l) {
      if (lanes[l]) lanes[l]->result = bits;
    }
  });
  return mine.result;
}

void sync_warp(int line, unsigned mask) {
  int nothing = 0;
  collective(SYNC_WARP, line, mask, &nothing, [](void* const*) {});
}

unsigned match_any(int line, unsigned mask, uint64_t value) {
  Exchange<uint64_t> mine{value, 0, 0};
  collective(MATCH, line, mask, &mine, [](void* const* given) {
    const Lanes<Exchange<uint64_t>> lanes{given};
    for (int l = 0; l < 32; ++l) {
      for (int m = 0; lanes[l] && m < 32; ++m)
        lanes[l]->result |= lanes[m] && lanes[m]->value == lanes[l]->value ? 1u << m : 0;
    }
  });
  return static_cast<unsigned>(mine.result);
}

// ---- matrix fragments ---------------------------------------------------------------------------------------------

struct Fragments {
  int* d;
  const unsigned *a, *b;
};

void mma_m16n8k32_s8(int line, int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Fragments mine{d, a, b};
  collective(MMA, line, ~0u, &mine, [](void* const* given) {
    const Lanes<Fragments> lanes{given};
    int8_t left[16][32], right[8][32];
    for (int l = 0; l < 32; ++l) {
      const int group = l / 4, four = l % 4 * 4;
      memcpy(&left[group][four], &lanes[l]->a[0], 4);
      memcpy(&left[group + 8][four], &lanes[l]->a[1], 4);
      memcpy(&left[group][four + 16], &lanes[l]->a[2], 4);
      memcpy(&left[group + 8][four + 16], &lanes[l]->a[3], 4);
      memcpy(&right[group][four], &lanes[l]->b[0], 4);
      memcpy(&right[group][four + 16], &lanes[l]->b[1], 4);
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        int sum = 0;
        for (int k = 0; k < 32; ++k) sum += left[row][k] * right[column][k];
        lanes[l]->d[i] += sum;
      }
    }
  });
}

struct MatrixRow {
  unsigned* to;
  const void* from;
};

void load_matrix_x4(int line, unsigned (&to)[4], const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16) fail("ldmatrix reads a row that is not aligned to 16 bytes");
  MatrixRow mine{to, from};
  collective(LOAD_MATRIX, line, ~0u, &mine, [](void* const* given) {
    const Lanes<MatrixRow> lanes{given};
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i)
        memcpy(&lanes[l]->to[i], static_cast<const char*>(lanes[8 * i + l / 4]->from) + l % 4 * 4, 4);
    }
  });
}

// ---- asynchronous copies ------------------------------------------------------------------------------------------

static void do_copy(const Copy& copy) {
  char data[16] = {};
  memcpy(data, copy.from, copy.given);
  memcpy(copy.to, data, copy.bytes);
}

void copy_async(void* to, const void* from, size_t bytes, size_t given) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("an asynchronous copy is not aligned to its size");
  const Copy copy{to, from, bytes, given};
  if (draw() & 1) {
    do_copy(copy);
  } else {
    fibers[current].open.push_back(copy);
  }
}
void copy_commit() {
  fibers[current].pending.push_back(std::move(fibers[current].open));
  fibers[current].open.clear();
}
void copy_wait(size_t newest) {
  auto& pending = fibers[current].pending;
  while (pending.size() > newest) {
    for (const Copy& copy : pending.front()) do_copy(copy);
    pending.erase(pending.begin());
  }
}

// ---- running a grid -----------------------------------------------------------------------------------------------

static void enter() {
  threadIdx = fibers[current].index;
  run_kernel(kernel_arguments);
  size_t on_their_way = fibers[current].open.size();
  for (const auto& group : fibers[current].pending) on_their_way += group.size();
  if (on_their_way) fail("ends before %d of its asynchronous copies", static_cast<int>(on_their_way));
  fibers[current].state = DONE;
  ++num_done;
  for (;;) stop_running();
}

static std::string stuck() {
  int at_barrier = 0, in_warp = 0, line = 0;
  for (int t = 0; t < num_threads; ++t) {
    at_barrier += fibers[t].state == AT_BARRIER;
    in_warp += fibers[t].state == IN_WARP;
    if (fibers[t].state == AT_BARRIER || fibers[t].state == IN_WARP) line = fibers[t].line;
  }
  return where() + ": deadlock, " + std::to_string(at_barrier) + " threads at a barrier, " + std::to_string(in_warp) +
         " in a collective of their warp, " + std::to_string(num_done) + " finished; one waits at line " +
         std::to_string(line);
}

static void run_block(size_t shared_bytes) {
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, sizeof shared_memory);
  memset(__start_emulated_shared, 0xCD, static_cast<size_t>(__stop_emulated_shared - __start_emulated_shared));
  ASAN_POISON_MEMORY_REGION(shared_memory + shared_bytes, sizeof shared_memory - shared_bytes);
  num_done = num_at_barrier = 0;
  ready.clear();
  for (int t = 0; t < num_threads; ++t) {
    const unsigned thread = static_cast<unsigned>(t);
    fibers[t].context = new_context(fibers[t].stack, enter);
    fibers[t].index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
    fibers[t].open.clear();
    fibers[t].pending.clear();
    wake(t);
  }
  const bool eager = draw() & 1;  // whoever was woken last goes on, mostly: so a warp runs ahead of the others
  while (!ready.empty() && error.empty()) {
    const size_t place = eager && draw() % 16 ? ready.size() - 1 : draw() % ready.size();
    current = ready[place];
    ready[place] = ready.back();
    ready.pop_back();
    threadIdx = fibers[current].index;
    switch_context(&scheduler, fibers[current].context);
  }
  if (error.empty() && num_done < num_threads) error = stuck();
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, sizeof shared_memory);
  const size_t guarded = std::min(shared_bytes + 4096, sizeof shared_memory);
  for (size_t i = shared_bytes; i < guarded && error.empty(); ++i) {
    if (shared_memory[i] != 0xCD)
      error = where() + ": wrote past the " + std::to_string(shared_bytes) + " bytes of shared memory";
  }
}

const char* launch(void (*kernel)(void**), void** arguments, const long long* shape, long long shared_bytes,
                   uint64_t seed) {
  error.clear();
  gridDim = {static_cast<unsigned>(shape[0]), static_cast<unsigned>(shape[1]), static_cast<unsigned>(shape[2])};
  blockDim = {static_cast<unsigned>(shape[3]), static_cast<unsigned>(shape[4]), static_cast<unsigned>(shape[5])};
  num_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  random_state = seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull;
  if (num_threads < 1 || num_threads > 1024) return "a block has 1 to 1,024 threads";
  if (shape[0] < 1 || shape[1] < 1 || shape[2] < 1 || shape[0] > 0x7FFFFFFF || shape[1] > 65535 || shape[2] > 65535)
    return "the grid is empty or too large";
  if (shared_bytes < 0 || shared_bytes > static_cast<long long>(sizeof shared_memory))
    return "more shared memory than a block has";
  if (fibers.size() < static_cast<size_t>(num_threads)) fibers.resize(static_cast<size_t>(num_threads));
  for (Fiber& fiber : fibers) {
    if (fiber.stack) continue;
    fiber.stack = static_cast<char*>(
        mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  run_kernel = kernel;
  kernel_arguments = arguments;
  std::vector<long long> blocks(static_cast<size_t>(shape[0] * shape[1] * shape[2]));
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = static_cast<long long>(i);
    std::swap(blocks[i], blocks[draw() % (i + 1)]);
  }
  for (const long long block : blocks) {
    blockIdx = {static_cast<unsigned>(block % shape[0]), static_cast<unsigned>(block / shape[0] % shape[1]),
                static_cast<unsigned>(block / shape[0] / shape[1])};
    run_block(static_cast<size_t>(shared_bytes));
    if (!error.empty()) return error.c_str();
  }
  return nullptr;
}

}  // namespace emulation
