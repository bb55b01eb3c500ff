// The gradient of long_attention.cu, as three kernels, for Hopper's tensor cores (sm_90a).
//
// Compiled for T, HEADS and ROPE (0 or 1); heads have 64 numbers. One kernel for what a row
// needs, its log-sum-exp and the dot product of its result with that one's gradient; one for the
// gradients of keys and values, which also adds up those of the queries; one that writes all
// three to d_qkv.
//
// The second: a block takes items, 128 keys of a head each, one after the other, each of its two
// groups of four warps 64 of the keys, and goes over all queries, 64 a turn. With S = q k^T, P
// its softmax, O = P v, and d before a name for its gradient, a turn has five products, keys
// being the rows of the first four results:
//   S^T = k q^T, (dP)^T = v (dO)^T, dv += P^T dO, dk += (dS)^T q, dq += dS k,
// where dS = P (dP - dot). A group has its scores multiplied one turn ahead. For dq both groups'
// dS are needed. They lie in shared memory, and are multiplied two turns later, so that the
// groups need not walk in step: one takes exponentials while the other multiplies. Each half of
// dq's columns is added in global memory, where the blocks of a head meet; so dq's last bits
// depend on their order. The compiler lets products run together only if none is begun in a
// condition, and if the next turn begins by awaiting all that run at a turn's end. So the first
// two turns' dq, of nothing, and the scores behind the last turn are computed, and not used.
//
// q and k are (B, T, HEADS, 64), turned by their positions; v is the third part of qkv, which is
// (B, T, 3, HEADS, 64) as is d_qkv; out and d_out are (B, T, HEADS, 64), lse is (B, HEADS, T), to
// base 2, as long_attention.cu gives it, cos and sin are (T, 64) floats, of which those of ROPE
// turn gradients back. rows is (B, HEADS, TURNS, 2, 64): of each turn the log-sum-exps, then the
// dots. d_query is (B, HEADS, TURNS, 4096) floats, a turn's as the lanes hold it, zero at first.
// d_kv is (B, T, 2, HEADS, 64).
//
// Grids: row_dots has `count` threads, eight for each row of rows; long_attention_backward any
// number of blocks up to `items`, which is B * HEADS * BLOCKS; join_gradients B * HEADS * TURNS.

constexpr int SIZE = 64, STEPS = SIZE / 16;            // of a head, and of a product in 16 numbers
constexpr int THREADS = 256, KEYS = 128, QUERIES = 64; // of a block, and queries a turn
// Turns whose queries are copied ahead; with this turn's, and the last one's, which the other group
// may still be at, there are six stages.
constexpr int AHEAD = 4, STAGES = AHEAD + 2;
constexpr int CHANGES = 4;           // turns whose dS are kept: from two before to the other's next
constexpr int TILE = QUERIES * SIZE; // numbers of a turn's queries, or of a group's keys
constexpr int TURNS = (T + QUERIES - 1) / QUERIES, BLOCKS = (T + KEYS - 1) / KEYS;
constexpr int STEP = HEADS * SIZE, QKV_STEP = 3 * STEP;
constexpr int UNITS = TILE * 2 / 16,
              ACROSS_STEP = 16 * SIZE * 2 / 16; // of 16 bytes, for descriptors
constexpr float SCALE = 0.125f;

// Where a head's rows begin, in an array of `step` numbers a row.
__device__ __forceinline__ long long head_start(int head, int step) {
  return (long long)(head / HEADS) * T * step + head % HEADS * SIZE;
}

#ifdef ROW_DOTS // eight lanes a row
extern "C" __global__ void row_dots(const bf16* out, const bf16* d_out, const float* lse,
                                    float* rows, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count)
    return;
  const int row = i / 8 / HEADS % (TURNS * QUERIES);
  const int head = i / 8 / HEADS / (TURNS * QUERIES) * HEADS + i / 8 % HEADS;
  float dot = 0.f, sum = INFINITY; // no share of what is behind T
  if (row < T) {
    const long long at = head_start(head, STEP) + (long long)row * STEP + i % 8 * 8;
    const Vec8 o = *(const Vec8*)(out + at), d = *(const Vec8*)(d_out + at);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      dot += low(d.pair[k]) * low(o.pair[k]) + high(d.pair[k]) * high(o.pair[k]);
    sum = lse[(long long)head * T + row];
  }
#pragma unroll
  for (int offset = 4; offset > 0; offset /= 2)
    dot += __shfl_xor_sync(0xffffffffu, dot, offset);
  if (i % 8 == 0) {
    float* to = rows + ((long long)head * TURNS + row / QUERIES) * 2 * QUERIES + row % QUERIES;
    to[0] = sum;
    to[QUERIES] = dot;
  }
}
#endif

#ifdef LONG_ATTENTION_BACKWARD
// The next item's keys are copied in turn 3, and at turn t a group knows that the other's copies of
// turn t - 3 and before have come; so they are there when turn 6 has begun.
static_assert(TURNS >= 7, "the next item's keys would not be there");

// The groups' own barriers: one says that it has come to a turn, the other waits until it has.
__device__ __forceinline__ int barrier(int group, int round) { return 1 + 2 * group + round % 2; }
__device__ __forceinline__ void arrive(int barrier) {
  asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait_for_other(int barrier) {
  asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void store4(bf16* p, const unsigned int* r) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(p)),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}
// Add 4 floats in global memory, as one operation there.
__device__ __forceinline__ void add4(float* to, const float* x) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]),
               "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
}

// The 16 rows of each warp of a block's 128 as the left factor.
__device__ __forceinline__ void load_left(unsigned int (*a)[4], const bf16* tile) {
  const int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
  const bf16* row = tile + (threadIdx.x / 32 * 16 + matrix % 2 * 8 + line) * SIZE;
#pragma unroll
  for (int s = 0; s < STEPS; ++s)
    load4(a[s], row + ((2 * s + matrix / 2) ^ line) * 8);
}

// A group's d = a tile^T, d += a tile, and d = left^T right of 128 rows; places as in descriptors.
__device__ __forceinline__ void multiply_rows(float* d, unsigned int (*a)[4], unsigned int tile) {
#pragma unroll
  for (int s = 0; s < STEPS; ++s)
    multiply64(d, a[s], descriptor(tile + s * 2), s);
  end_products();
}
__device__ __forceinline__ void add_mixed(float* d, const unsigned int* a, unsigned int tile) {
#pragma unroll
  for (int s = 0; s < STEPS; ++s)
    multiply64<1>(d, a + 4 * s, descriptor(tile + s * ACROSS_STEP), 1);
  end_products();
}
__device__ __forceinline__ void multiply_queries(float* d, unsigned int left, unsigned int right) {
#pragma unroll
  for (int s = 0; s < KEYS / 16; ++s)
    multiply32_across(d, descriptor(left + s * ACROSS_STEP), descriptor(right + s * ACROSS_STEP),
                      s);
  end_products();
}
__device__ __forceinline__ void add_queries(float* to, const float* part) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    add4(to + j * 512, part + 4 * j);
}

// A warp's 16 rows of the gradient of keys or values, of which the first is `first`, by way of its
// rows in shared memory; turned back by the position where asked for.
__device__ __forceinline__ void store_rows(bf16* to, bf16* rows, const float* d, float factor,
                                           int first, bool angles, const float* cos,
                                           const float* sin) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      *(unsigned int*)(rows + (lane / 4 + 8 * r) * SIZE + (i ^ lane / 4) * 8 + lane % 4 * 2) =
          pack(d[4 * i + 2 * r] * factor, d[4 * i + 2 * r + 1] * factor);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int inside = n * 8 + lane / 4, row = first + inside, at = lane % 4;
    Vec8 one = *(const Vec8*)(rows + inside * SIZE + (at ^ inside % 8) * 8);
    Vec8 two = *(const Vec8*)(rows + inside * SIZE + ((at + 4) ^ inside % 8) * 8);
    if (row >= T)
      continue;
    if (ROPE && angles)
      turn(one, two, angles_at(cos + row * SIZE + at * 8, sin + row * SIZE + at * 8), -1.f);
    bf16* place = to + (long long)row * 2 * STEP + at * 8;
    *(Vec8*)place = one;
    *(Vec8*)(place + SIZE / 2) = two;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    long_attention_backward(const bf16* q, const bf16* k, const bf16* qkv, const bf16* d_out,
                            const float* rows, const float* cos, const float* sin, float* d_query,
                            bf16* d_kv, int items) {
  extern __shared__ __align__(1024) bf16 memory[];
  bf16* stages = memory;                   // STAGES of queries and of d_out
  bf16* keys = stages + STAGES * 2 * TILE; // these 128 and the next
  bf16* values = keys + 4 * TILE;    // these 128, and as soon as they are in registers the next
  bf16* changes = values + 2 * TILE; // CHANGES of dS: (keys, queries)
  bf16* results = changes + CHANGES * 2 * TILE;
  float* stats = (float*)(results + 2 * TILE); // STAGES of rows
  const int lane = threadIdx.x % 32, line = threadIdx.x / 8, piece = threadIdx.x % 8;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const int own = line * SIZE + (piece ^ line % 8) * 8; // wgmma looks for its 16 bytes there

  // A turn's queries, d_out and rows into a stage; `at`, of this thread, and `of` say where they
  // are.
  auto copy_turn = [&](int stage, long long at, const float* of, int turn) {
    bf16* to = stages + stage * 2 * TILE + own;
    copy_rows<T, STEP>(to, q + at, turn * QUERIES);
    copy_rows<T, STEP>(to + TILE, d_out + at, turn * QUERIES);
    if (threadIdx.x < 32)
      copy16((bf16*)(stats + stage * 2 * QUERIES + threadIdx.x * 4), (const bf16*)of);
  };
  auto turn_at = [&](int head) { return head_start(head, STEP) + line * STEP + piece * 8; };
  auto rows_of = [&](int head) {
    return rows + (long long)head * TURNS * 2 * QUERIES + threadIdx.x * 4;
  };
  auto copy_keys = [&](int side, int item) {
    const int head = item / BLOCKS;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = item % BLOCKS * KEYS + half * 64;
      const long long row = first + line;
      const bf16* value = qkv + head_start(head, QKV_STEP) + row * QKV_STEP + 2 * STEP + piece * 8;
      copy_rows<T, STEP>(keys + (side * 2 + half) * TILE + own,
                         k + head_start(head, STEP) + row * STEP + piece * 8, first);
      copy_rows<T, QKV_STEP>(values + half * TILE + own, value, first);
    }
  };

  int ahead = 0, stage = 0, next = 0; // the turn that is copied next, this turn's stage, that one's
  long long ahead_at = turn_at(blockIdx.x / BLOCKS);
  const float* ahead_rows = rows_of(blockIdx.x / BLOCKS);
  copy_keys(0, blockIdx.x);
#pragma unroll
  for (; ahead < AHEAD; ++ahead, ++next) {
    copy_turn(next, ahead_at, ahead_rows, ahead);
    ahead_at += QUERIES * STEP;
    ahead_rows += 2 * QUERIES;
    end_copies();
  }
  bf16* own_changes = changes + group * TILE + (threadIdx.x % 128 / 32 * 16 + lane % 16) * SIZE;
  float* to_queries = d_query + group * (TILE / 2) + threadIdx.x % 128 * 4;
  float *before = to_queries, *last = to_queries; // where dq of the last two turns goes
  int round = 0, side = 0;                        // turns so far, and which keys are these
  wait_for_copies<1>();
  show_to_products();
  __syncthreads();
#pragma unroll 1
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int head = item / BLOCKS, block = item % BLOCKS;
    const int first = block * KEYS + threadIdx.x / 32 * 16; // of this warp's keys
    const bool more = item + gridDim.x < items;
    unsigned int key[STEPS][4], value[STEPS][4];
    load_left(key, keys + side * 2 * TILE);
    load_left(value, values);
    float d_key[32], d_value[32], score[32];
#pragma unroll
    for (int i = 0; i < 32; ++i)
      d_key[i] = d_value[i] = 0.f;
    pin<32>(d_key);
    pin<32>(d_value);
    begin_products();
    multiply_rows(score, key, lower_half(stages) + stage * 2 * UNITS);
#pragma unroll 1
    for (int turn = 0; turn < TURNS; ++turn) {
      wait_for_copies<1>();
      wait_for_products<0>();
      pin<32>(score);
      show_to_products();
      if (round > 0)
        wait_for_other(barrier(group ^ 1, round - 1));
      arrive(barrier(group, round));
      const unsigned int query = lower_half(stages) + stage * 2 * UNITS, d_row = query + UNITS;
      float d_share[32], part[16];
      begin_products();
      multiply_rows(d_share, value, d_row);
      multiply_queries(part, lower_half(changes) + (round + CHANGES - 2) % CHANGES * 2 * UNITS,
                       lower_half(keys) + (turn > 1 ? side : side ^ 1) * 2 * UNITS + group * 4);
      if (more || turn + AHEAD < TURNS) {
        copy_turn(next, ahead_at, ahead_rows, ahead);
        ahead_at += QUERIES * STEP;
        ahead_rows += 2 * QUERIES;
        if (++ahead == TURNS) {
          ahead = 0;
          ahead_at = turn_at((item + gridDim.x) / BLOCKS);
          ahead_rows = rows_of((item + gridDim.x) / BLOCKS);
        }
      }
      if (turn == 3 && more) // neither group needs the last item's keys any more
        copy_keys(side ^ 1, item + gridDim.x);
      end_copies();
      const float2* sums = (const float2*)(stats + stage * 2 * QUERIES) + lane % 4;
      float share[32];
      unsigned int shares[16], changed[16]; // in pairs
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 sum = sums[i * 4];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int at = 4 * i + 2 * r;
          share[at] = power_of_2(fmaf(score[at], SCALE * 1.44269504f, -sum.x));
          share[at + 1] = power_of_2(fmaf(score[at + 1], SCALE * 1.44269504f, -sum.y));
        }
      }
      if (block == BLOCKS - 1 && T % KEYS) {
#pragma unroll
        for (int i = 0; i < 32; ++i)
          if (first + lane / 4 + i / 2 % 2 * 8 >= T)
            share[i] = 0.f;
      }
#pragma unroll
      for (int i = 0; i < 16; ++i)
        shares[i] = pack(share[2 * i], share[2 * i + 1]);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
      next = next == STAGES - 1 ? 0 : next + 1;
      begin_products();
      add_mixed(d_value, shares, d_row);
      multiply_rows(score, key, lower_half(stages) + stage * 2 * UNITS);
      wait_for_products<3>();
      pin<32>(d_share);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 dot = sums[QUERIES / 2 + i * 4];
#pragma unroll
        for (int r = 0; r < 2; ++r) { // the rounded shares: the others would take 32 registers
          const unsigned int pair = shares[2 * i + r];
          const float* d = d_share + 4 * i + 2 * r;
          changed[2 * i + r] = pack(low(pair) * (d[0] - dot.x), high(pair) * (d[1] - dot.y));
        }
      }
#pragma unroll
      for (int s = 0; s < STEPS; ++s)
        store4(own_changes + round % CHANGES * 2 * TILE + ((2 * s + lane / 16) ^ lane % 8) * 8,
               changed + 4 * s);
      begin_products();
      add_mixed(d_key, changed, query);
      wait_for_products<3>();
      pin<16>(part);
      if (round > 1)
        add_queries(before, part);
      before = last;
      last = to_queries + ((long long)head * TURNS + turn) * TILE;
      ++round;
    }
    wait_for_products<0>();
    pin<32>(d_key);
    pin<32>(d_value);
    side ^= 1;
    bf16* to = d_kv + head_start(head, 2 * STEP);
    bf16* through = results + threadIdx.x / 32 * 16 * SIZE;
    store_rows(to, through, d_key, SCALE, first, true, cos, sin);
    store_rows(to + STEP, through, d_value, 1.f, first, false, cos, sin);
  }
  show_to_products();
  wait_for_other(barrier(group ^ 1, round - 1));
  __syncthreads(); // the last dS is there only now
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float part[16];
    begin_products();
    multiply_queries(part, lower_half(changes) + (round + CHANGES - 2 + n) % CHANGES * 2 * UNITS,
                     lower_half(keys) + (side ^ 1) * 2 * UNITS + group * 4);
    wait_for_products<0>();
    pin<16>(part);
    add_queries(n ? last : before, part);
  }
}
#endif

#ifdef JOIN_GRADIENTS // a block a turn of a head
extern "C" __global__ void join_gradients(const float* d_query, const bf16* d_kv, const float* cos,
                                          const float* sin, bf16* d_qkv) {
  constexpr int WIDTH = SIZE + 4; // of a row of sums in shared memory: no bank is read twice
  __shared__ __align__(16) float sums[QUERIES * WIDTH];
  const int head = blockIdx.x / TURNS, first = blockIdx.x % TURNS * QUERIES;
  const float* from = d_query + (long long)blockIdx.x * TILE;
  bf16* to = d_qkv + head_start(head, QKV_STEP) + (long long)first * QKV_STEP;
  const bf16* kv = d_kv + head_start(head, 2 * STEP) + (long long)first * 2 * STEP;
#pragma unroll
  for (int n = 0; n < TILE / 4 / THREADS; ++n) {
    const int i = n * THREADS + threadIdx.x;
    const float4 x = *(const float4*)(from + i * 4);
    const int row = i % 128 / 32 * 16 + i % 32 / 4, column = i / 128 * 8 + i % 4 * 2;
    *(float2*)(sums + row * WIDTH + column) = make_float2(x.x, x.y);
    *(float2*)(sums + (row + 8) * WIDTH + column) = make_float2(x.z, x.w);
  }
#pragma unroll
  for (int n = 0; n < 2 * TILE / 8 / THREADS; ++n) {
    const int i = n * THREADS + threadIdx.x, row = i / 16, part = i / 8 % 2, at = i % 8 * 8;
    if (first + row < T)
      *(Vec8*)(to + row * QKV_STEP + (1 + part) * STEP + at) =
          *(const Vec8*)(kv + (row * 2 + part) * STEP + at);
  }
  __syncthreads();
  const int row = threadIdx.x / 4, at = threadIdx.x % 4 * 8;
  if (first + row >= T)
    return;
  const float* x = sums + row * WIDTH + at;
  Vec8 one, two;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    one.pair[k] = pack(x[2 * k] * SCALE, x[2 * k + 1] * SCALE);
    two.pair[k] = pack(x[SIZE / 2 + 2 * k] * SCALE, x[SIZE / 2 + 2 * k + 1] * SCALE);
  }
  const int angle = (first + row) * SIZE + at;
  if (ROPE)
    turn(one, two, angles_at(cos + angle, sin + angle), -1.f);
  *(Vec8*)(to + row * QKV_STEP + at) = one;
  *(Vec8*)(to + row * QKV_STEP + at + SIZE / 2) = two;
}
#endif
