// softmax(q k^T / 8) v of long sequences, for Hopper's tensor cores (sm_90a).
//
// Compiled for T, HEADS and ROPE (0 or 1); heads have 64 numbers. A block does 128 rows of a head,
// each of its two groups of four warps 64 of them, and goes over all keys and values, 64 at a time,
// of which those of the next two turns are copied to shared memory meanwhile. At most 63 keys and 63
// rows more than T are computed.
//
// Arithmetic as in flash attention: scores and sums in float, exponentials rounded before they meet
// the values, the division last. What is taken from a row's scores before the exponential need not
// be their largest: a float's exponent has room. So it is the largest of the first 64 keys until a
// lane's sum of exponentials says that there are far larger ones, which random rows never have; the
// search for the largest, and the scaling of what is there, took a third of the instructions.
//
// qkv is (B, T, 3, HEADS, 64), keys (B, T, HEADS, 64) as rope.cu has turned them and read with ROPE
// only, cos and sin (T, 64) floats, out (B, T, HEADS, 64); with KEEP lse (B, HEADS, T), the logarithm
// to base 2 of each row's sum of exponentials. Grid (BLOCKS * HEADS, B).

constexpr int SIZE = 64, STEPS = SIZE / 16;         // of a head, and of a product in 16 numbers
constexpr int THREADS = 256, ROWS = 128, KEYS = 64; // of a block, and keys at a time
constexpr int STAGES = 4, AHEAD = STAGES - 2;       // in shared memory; the last may still be read
constexpr int TILE = KEYS * SIZE;                   // numbers of a stage's keys, or of its values
constexpr int ROUNDS = (T + KEYS - 1) / KEYS, BLOCKS = (T + ROWS - 1) / ROWS;
constexpr int STEP = HEADS * SIZE, QKV_STEP = 3 * STEP, KEY_STEP = ROPE ? STEP : QKV_STEP;
constexpr float ROOM = 4096.f;

// The 16 rows of a warp as the left factor: 16 x 64; a row behind T is that of T - 1.
__device__ __forceinline__ void load_queries(unsigned int (*a)[4], const bf16* queries, int first,
                                             const float* cos, const float* sin) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int row = first + lane / 4 + 8 * r;
    row = row < T ? row : T - 1;
    const bf16* from = queries + (long long)row * QKV_STEP + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < STEPS; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        a[s][2 * half + r] = *(const unsigned int*)(from + s * 16 + half * 8);
    if (!ROPE)
      continue;
#pragma unroll
    for (int s = 0; s < STEPS / 2; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int angle = row * SIZE + s * 16 + half * 8 + lane % 4 * 2;
        const float2 c = *(const float2*)(cos + angle), n = *(const float2*)(sin + angle);
        unsigned int &x = a[s][2 * half + r], &y = a[s + STEPS / 2][2 * half + r];
        const float x0 = low(x), x1 = high(x), y0 = low(y), y1 = high(y);
        x = pack(x0 * c.x - y0 * n.x, x1 * c.y - y1 * n.y);
        y = pack(y0 * c.x + x0 * n.x, y1 * c.y + x1 * n.y);
      }
  }
}

// A lane's exponentials of 2 rows, as the left factor of four products, and their sums, of which
// every second one is added apart: a sum waits for the one before it.
__device__ __forceinline__ void exponentials(unsigned int* powers, float* sums, const float* scores,
                                             float scale, const float* taken) {
  float parts[2][2];
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* at = scores + 4 * i + 2 * r;
      const float x = power_of_2(at[0] * scale - taken[r]), y = power_of_2(at[1] * scale - taken[r]);
      parts[i % 2][r] = i < 2 ? x + y : parts[i % 2][r] + (x + y);
      powers[2 * i + r] = pack(x, y);
    }
  sums[0] = parts[0][0] + parts[1][0];
  sums[1] = parts[0][1] + parts[1][1];
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    long_attention(const bf16* qkv, const bf16* keys, const float* cos, const float* sin,
                   KEPT(float* lse) bf16* out) {
  extern __shared__ __align__(1024) bf16 stages[];
  const int head = blockIdx.x / BLOCKS, lane = threadIdx.x % 32;
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const int begin = blockIdx.x % BLOCKS * ROWS + group * 64;
  const int first = begin + threadIdx.x % 128 / 32 * 16; // of this warp's rows
  const bf16* queries = qkv + (long long)blockIdx.y * T * QKV_STEP + head * SIZE;
  // A row's 16-byte pieces are moved by its number, of 8: there wgmma looks for them.
  const int line = threadIdx.x / 8, piece = threadIdx.x % 8;
  bf16* own = stages + line * SIZE + (piece ^ line % 8) * 8;
  const bf16* values = queries + 2 * STEP + line * QKV_STEP + piece * 8;
  const bf16* turned = ROPE ? keys + (long long)blockIdx.y * T * STEP + head * SIZE : queries + STEP;
  turned += line * KEY_STEP + piece * 8;
  const float scale = 0.125f * 1.44269504f; // exponentials are powers of 2
#pragma unroll
  for (int n = 0; n < AHEAD; ++n) {
    if (n < ROUNDS) {
      copy_rows<T, KEY_STEP>(own + n * 2 * TILE, turned + n * KEYS * KEY_STEP, n * KEYS);
      copy_rows<T, QKV_STEP>(own + n * 2 * TILE + TILE, values + n * KEYS * QKV_STEP, n * KEYS);
    }
    end_copies();
  }
  unsigned int query[STEPS][4];
  load_queries(query, queries, first, cos, sin);
  float sum[2] = {0.f, 0.f}, taken[2] = {0.f, 0.f};
  float mixed[32];
#pragma unroll
  for (int i = 0; i < 32; ++i)
    mixed[i] = 0.f;
  int slot = 0, next = AHEAD; // stages of this round, and of AHEAD rounds later
  for (int round = 0; round < ROUNDS; ++round) {
    wait_for_copies<AHEAD - 1>();
    show_to_products();
    __syncthreads(); // every product but those of the last round has been waited for
    const unsigned int key = lower_half(stages) + slot * (4 * TILE / 16);
    const unsigned int value = key + 2 * TILE / 16;
    const int from = round * KEYS;
    float score[32];
    if (begin < T) {
      begin_products();
#pragma unroll
      for (int s = 0; s < STEPS; ++s)
        multiply64(score, query[s], descriptor(key + s * 2), s);
      end_products();
    }
    if (round + AHEAD < ROUNDS) {
      const int row = from + AHEAD * KEYS;
      bf16* to = own + next * 2 * TILE;
      copy_rows<T, KEY_STEP>(to, turned + (long long)row * KEY_STEP, row);
      copy_rows<T, QKV_STEP>(to + TILE, values + (long long)row * QKV_STEP, row);
    }
    end_copies();
    slot = slot == STAGES - 1 ? 0 : slot + 1;
    next = next == STAGES - 1 ? 0 : next + 1;
    if (begin >= T)
      continue;
    wait_for_products<0>(); // those with the last round's values, too
    pin<32>(score);
    pin<32>(mixed);
    if (from + KEYS > T) {
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (from + i / 4 * 8 + lane % 4 * 2 + i % 2 >= T)
          score[i] = -INFINITY;
    }
    unsigned int powers[16];
    float sums[2];
    exponentials(powers, sums, score, scale, taken);
    if (__any_sync(0xffffffffu, from == 0 || !(sums[0] <= ROOM && sums[1] <= ROOM))) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float largest = score[2 * r];
#pragma unroll
        for (int i = 0; i < 8; ++i)
          largest = fmaxf(largest, fmaxf(score[4 * i + 2 * r], score[4 * i + 2 * r + 1]));
        largest = quad_max(largest) * scale;
        if (from > 0)
          largest = fmaxf(largest, taken[r]);
        const float shrink = from > 0 ? power_of_2(taken[r] - largest) : 0.f;
        sum[r] *= shrink;
        taken[r] = largest;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          mixed[4 * i + 2 * r] *= shrink;
          mixed[4 * i + 2 * r + 1] *= shrink;
        }
      }
      exponentials(powers, sums, score, scale, taken);
    }
    sum[0] += sums[0];
    sum[1] += sums[1];
    pin<32>(mixed);
    begin_products();
#pragma unroll
    for (int s = 0; s < KEYS / 16; ++s)
      multiply64<1>(mixed, powers + 4 * s, descriptor(value + s * 16 * (2 * SIZE / 16)), 1);
    end_products();
  }
  wait_for_products<0>();
  pin<32>(mixed);
  bf16* to = out + (long long)blockIdx.y * T * STEP + head * SIZE + lane % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + lane / 4 + 8 * r;
    const float total = quad_sum(sum[r]), share = 1.f / total;
#if KEEP
    if (lane % 4 == 0 && row < T)
      lse[((long long)blockIdx.y * HEADS + head) * T + row] = taken[r] + log2f(total);
#endif
    if (row < T)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        *(unsigned int*)(to + (long long)row * STEP + i * 8) =
            pack(mixed[4 * i + 2 * r] * share, mixed[4 * i + 2 * r + 1] * share);
  }
}
