// Self-attention of short sequences with rotary positions, and its gradient. A block keeps one head
// of one sequence in shared memory; a warp does 16 rows. Arithmetic as in flash attention: scores
// and sums in float, exponentials rounded before they meet the values, the division last.
//
// Compiled for T, HEADS, SIZE (of a head) and ROPE (0 or 1). Grid (HEADS, B), (T + 15) / 16 warps.
// qkv is (B, T, 3, HEADS, SIZE), cos and sin (T, SIZE) floats, out (B, T, HEADS, SIZE), lse
// (B, HEADS, T): the logarithm to base 2 of each row's sum of exponentials.

constexpr int WARPS = (T + 15) / 16, ROWS = WARPS * 16, THREADS = WARPS * 32;
constexpr int STRIDE = SIZE + 8;      // 16 bytes more than a multiple of 128: no bank is hit twice
constexpr int TILE = ROWS * STRIDE;
constexpr int VECTORS = SIZE / 8, HALF = SIZE / 2;
constexpr int STEPS = SIZE / 16;      // of a product over a head's numbers
constexpr int QUERY_STRIDE = ROWS + 8;
// Blocks that a multiprocessor shall hold at once, to load for one while another multiplies.
constexpr int FORWARD_BLOCKS = THREADS <= 224 ? 3 : 2, BACKWARD_BLOCKS = 2;

constexpr float LOG2_E = 1.44269504f; // exponentials are powers of 2
constexpr int WHOLE = T / 8;          // groups of 8 keys of which none is padding

// Queries and keys to shared memory, turned by their positions. All of a thread's loads are started
// before the first is used.
__device__ __forceinline__ void load_qk(bf16* queries, bf16* keys, const bf16* qkv, const float* cos,
                                        const float* sin) {
  constexpr int PAIRS = ROWS * (VECTORS / 2), ROUNDS = (PAIRS + THREADS - 1) / THREADS;
  Vec8 part[ROUNDS][2][2] = {};
  Angles angles[ROUNDS] = {};
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) {
    const int i = threadIdx.x + n * THREADS;
    const int row = i / (VECTORS / 2), at = i % (VECTORS / 2) * 8;
    if (row >= T)
      continue;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const bf16* from = qkv + ((long long)row * 3 + p) * HEADS * SIZE + at;
      part[n][p][0] = *(const Vec8*)from;
      part[n][p][1] = *(const Vec8*)(from + HALF);
    }
    if (ROPE)
      angles[n] = angles_at(cos + row * SIZE + at, sin + row * SIZE + at);
  }
#pragma unroll
  for (int n = 0; n < ROUNDS; ++n) {
    const int i = threadIdx.x + n * THREADS;
    const int row = i / (VECTORS / 2), at = i % (VECTORS / 2) * 8;
    if (PAIRS % THREADS && row >= ROWS)
      continue;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      bf16* to = (p ? keys : queries) + row * STRIDE + at;
      if (ROPE)
        turn(part[n][p][0], part[n][p][1], angles[n], 1.f);
      *(Vec8*)to = part[n][p][0];
      *(Vec8*)(to + HALF) = part[n][p][1];
    }
  }
}

// Values to shared memory, with zeros behind them, while other things are done: await_copies.
__device__ __forceinline__ void copy_values(bf16* values, const bf16* qkv) {
  for (int i = threadIdx.x; i < ROWS * VECTORS; i += THREADS) {
    const int row = i / VECTORS, at = i % VECTORS * 8;
    if (row < T)
      copy16(values + row * STRIDE + at, qkv + ((long long)row * 3 + 2) * HEADS * SIZE + at);
    else
      *(Vec8*)(values + row * STRIDE + at) = Vec8{};
  }
}
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// The 16 rows of a warp as the left factor: 16 x SIZE.
__device__ __forceinline__ void load_rows(unsigned int (*a)[4], const bf16* tile, int first) {
  const int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
  const bf16* at = tile + (first + line + matrix % 2 * 8) * STRIDE + matrix / 2 * 8;
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
    load4(a[k], at + k * 16);
}

// c += a * tile^T for 16 rows of the tile: two results of 16 x 8.
__device__ __forceinline__ void scores(float (*c)[4], unsigned int (*a)[4], const bf16* tile,
                                       int first) {
  const int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
  const bf16* at = tile + (first + line + matrix / 2 * 8) * STRIDE + matrix % 2 * 8;
#pragma unroll
  for (int k = 0; k < STEPS; ++k) {
    unsigned int b[4];
    load4(b, at + k * 16);
    multiply16(c[0], a[k], b);
    multiply16(c[1], a[k], b + 2);
  }
}

// c += a * 16 rows of the tile, for a of 16 x 16: SIZE / 8 results of 16 x 8.
__device__ __forceinline__ void mix(float (*c)[4], const unsigned int* a, const bf16* tile,
                                    int first) {
  const int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
  const bf16* at = tile + (first + line + matrix % 2 * 8) * STRIDE + matrix / 2 * 8;
#pragma unroll
  for (int n = 0; n < STEPS; ++n) {
    unsigned int b[4];
    load4_transposed(b, at + n * 16);
    multiply16(c[2 * n], a, b);
    multiply16(c[2 * n + 1], a, b + 2);
  }
}

template <int COUNT> __device__ __forceinline__ void clear(float (*c)[4]) {
#pragma unroll
  for (int n = 0; n < COUNT; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      c[n][i] = 0.f;
}

// A warp's 16 x SIZE result, times a factor a row, into its rows of a tile.
__device__ __forceinline__ void keep_rows(bf16* tile, float (*c)[4], int first, float upper,
                                          float lower) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < VECTORS; ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = r ? lower : upper;
      *(unsigned int*)(tile + (first + lane / 4 + r * 8) * STRIDE + n * 8 + lane % 4 * 2) =
          pack(c[n][2 * r] * factor, c[n][2 * r + 1] * factor);
    }
}

// A warp's 16 rows of a tile to global memory, `step` numbers from row to row; turned back by the
// position where asked for.
__device__ __forceinline__ void store_rows(bf16* to, long long step, const bf16* tile, int first,
                                           bool angles, const float* cos, const float* sin) {
  __syncwarp();
  for (int i = threadIdx.x % 32; i < 16 * (VECTORS / 2); i += 32) {
    const int row = first + i / (VECTORS / 2), chunk = i % (VECTORS / 2);
    if (row >= T)
      continue;
    Vec8 one = *(const Vec8*)(tile + row * STRIDE + chunk * 8);
    Vec8 two = *(const Vec8*)(tile + row * STRIDE + HALF + chunk * 8);
    if (ROPE && angles)
      turn(one, two, angles_at(cos + row * SIZE + chunk * 8, sin + row * SIZE + chunk * 8), -1.f);
    *(Vec8*)(to + row * step + chunk * 8) = one;
    *(Vec8*)(to + row * step + HALF + chunk * 8) = two;
  }
}

#ifdef ATTENTION_FORWARD
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS)
    attention_forward(const bf16* qkv, const float* cos, const float* sin, bf16* out,
                      KEPT(float* lse) int scale_bits) {
  extern __shared__ __align__(16) bf16 memory[];
  bf16 *queries = memory, *keys = memory + TILE, *values = memory + 2 * TILE;
  const float scale = __int_as_float(scale_bits);
  const int head = blockIdx.x, first = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const long long sequence = blockIdx.y;
  qkv += sequence * T * 3 * HEADS * SIZE + head * SIZE;
  copy_values(values, qkv);
  load_qk(queries, keys, qkv, cos, sin);
  __syncthreads();

  unsigned int a[STEPS][4];
  load_rows(a, queries, first);
  float s[2 * WARPS][4];
  clear<2 * WARPS>(s);
#pragma unroll
  for (int n = 0; n < WARPS; ++n)
    scores(s + 2 * n, a, keys, n * 16);

  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
#pragma unroll
  for (int n = 0; n < 2 * WARPS; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n >= WHOLE && n * 8 + lane % 4 * 2 + i % 2 >= T)
        s[n][i] = -INFINITY;
      most[i / 2] = fmaxf(most[i / 2], s[n][i]);
    }
  const float factor = scale * LOG2_E;
#pragma unroll
  for (int r = 0; r < 2; ++r)
    most[r] = factor * quad_max(most[r]);
  await_copies();
  __syncthreads();
  float o[VECTORS][4];
  clear<VECTORS>(o);
#pragma unroll
  for (int n = 0; n < WARPS; ++n) {
    unsigned int p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* pair = s[2 * n + i / 2] + i % 2 * 2;
      pair[0] = power_of_2(fmaf(pair[0], factor, -most[i % 2]));
      pair[1] = power_of_2(fmaf(pair[1], factor, -most[i % 2]));
      sum[i % 2] += pair[0] + pair[1];
      p[i] = pack(pair[0], pair[1]);
    }
    mix(o, p, values, n * 16);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = quad_sum(sum[r]);
#if KEEP
    const int row = first + lane / 4 + r * 8;
    if (lane % 4 == 0 && row < T)
      lse[(sequence * HEADS + head) * T + row] = most[r] + log2f(sum[r]);
#endif
  }
  keep_rows(queries, o, first, 1.f / sum[0], 1.f / sum[1]);
  out += sequence * T * HEADS * SIZE + head * SIZE;
  store_rows(out, HEADS * SIZE, queries, first, false, cos, sin);
}
#endif

#ifdef ATTENTION_BACKWARD
extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS)
    attention_backward(const bf16* qkv, const float* cos, const float* sin, const bf16* out,
                       const float* lse, const bf16* d_out, bf16* d_qkv, int scale_bits) {
  extern __shared__ __align__(16) bf16 memory[];
  bf16 *queries = memory, *keys = memory + TILE, *values = memory + 2 * TILE;
  bf16 *d_outs = memory + 3 * TILE, *d_scores = memory + 4 * TILE; // (keys, queries)
  float* row_lse = (float*)(d_scores + ROWS * QUERY_STRIDE);
  float* row_dot = row_lse + ROWS; // of a row's result and its gradient
  const float scale = __int_as_float(scale_bits), factor = scale * LOG2_E;
  const int head = blockIdx.x, first = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const long long sequence = blockIdx.y;
  qkv += sequence * T * 3 * HEADS * SIZE + head * SIZE;
  d_qkv += sequence * T * 3 * HEADS * SIZE + head * SIZE;
  out += sequence * T * HEADS * SIZE + head * SIZE;
  d_out += sequence * T * HEADS * SIZE + head * SIZE;
  copy_values(values, qkv);
  load_qk(queries, keys, qkv, cos, sin);
  for (int i = threadIdx.x; i < ROWS * VECTORS; i += THREADS) {
    const int row = i / VECTORS, chunk = i % VECTORS;
    Vec8 d = {}, o = {};
    if (row < T) {
      d = *(const Vec8*)(d_out + (long long)row * HEADS * SIZE + chunk * 8);
      o = *(const Vec8*)(out + (long long)row * HEADS * SIZE + chunk * 8);
    }
    *(Vec8*)(d_outs + row * STRIDE + chunk * 8) = d;
    float dot = 0.f;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      dot += low(d.pair[k]) * low(o.pair[k]) + high(d.pair[k]) * high(o.pair[k]);
#pragma unroll
    for (int offset = VECTORS / 2; offset > 0; offset /= 2)
      dot += __shfl_xor_sync(0xffffffffu, dot, offset);
    if (chunk == 0) {
      row_dot[row] = dot;
      row_lse[row] = row < T ? lse[(sequence * HEADS + head) * T + row] : INFINITY;
    }
  }
  await_copies();
  __syncthreads();

  float d_key[VECTORS][4], d_value[VECTORS][4];
  clear<VECTORS>(d_key);
  clear<VECTORS>(d_value);
  {
    unsigned int k[STEPS][4], v[STEPS][4];
    load_rows(k, keys, first);
    load_rows(v, values, first);
#pragma unroll 1
    for (int n = 0; n < WARPS; ++n) { // 16 queries
      float s[2][4], d[2][4];
      clear<2>(s);
      clear<2>(d);
      scores(s, k, queries, n * 16);
      scores(d, v, d_outs, n * 16);
      unsigned int p[4], ds[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float shares[2], changes[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int query = n * 16 + i / 2 * 8 + lane % 4 * 2 + j;
          const int key = first + lane / 4 + i % 2 * 8;
          const float score = fmaf(s[i / 2][i % 2 * 2 + j], factor, -row_lse[query]);
          shares[j] = key < T ? power_of_2(score) : 0.f;
          changes[j] = shares[j] * (d[i / 2][i % 2 * 2 + j] - row_dot[query]);
        }
        p[i] = pack(shares[0], shares[1]);
        ds[i] = pack(changes[0], changes[1]);
        *(unsigned int*)(d_scores + (first + lane / 4 + i % 2 * 8) * QUERY_STRIDE + n * 16 +
                         i / 2 * 8 + lane % 4 * 2) = ds[i];
      }
      mix(d_value, p, d_outs, n * 16);
      mix(d_key, ds, queries, n * 16);
    }
  }
  __syncthreads(); // all of d_scores is there, and queries, values and d_outs are free

  float d_query[VECTORS][4];
  clear<VECTORS>(d_query);
  const int matrix = lane / 8, line = lane % 8;
#pragma unroll 1
  for (int n = 0; n < WARPS; ++n) { // 16 keys
    unsigned int ds[4];
    load4_transposed(ds, d_scores + (n * 16 + line + matrix / 2 * 8) * QUERY_STRIDE + first +
                             matrix % 2 * 8);
    mix(d_query, ds, keys, n * 16);
  }
  keep_rows(queries, d_query, first, scale, scale);
  keep_rows(d_outs, d_key, first, scale, scale);
  keep_rows(values, d_value, first, 1.f, 1.f);
  const long long step = 3 * HEADS * SIZE;
  store_rows(d_qkv, step, queries, first, true, cos, sin);
  store_rows(d_qkv + HEADS * SIZE, step, d_outs, first, true, cos, sin);
  store_rows(d_qkv + 2 * HEADS * SIZE, step, values, first, false, cos, sin);
}
#endif
