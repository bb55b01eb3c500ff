// rms_norm(x + swiglu over positions) in one kernel: x is read once and the result written once,
// instead of 30 times as much for the products in between.
//
// The scheme of flash attention, with columns of x as queries: a warp keeps 32 columns d of one
// sequence. For 16 inner units at a time it multiplies them by gate and up rows of the first
// weight, G^T = X^T Wg^T (32 x 16), takes h = silu(g) * u in registers, whose layout as a result is
// the one an operand has, and adds H^T Wd^T to its 32 x T outputs. The norm over T stays in the warp.
//
// Loops are unrolled no more than pays: MLX hashes a kernel's code at every launch, which took
// 60 microseconds for the 72 KiB that this once had.
//
// With GATED the product is a gate norm's, sigmoid(g) * rms_norm(g * u). A column's scale in that
// norm is one number, so it waits until the outputs are summed: H is silu(g) * u as without it,
// the squares of g * u are summed on the way, and each column of outputs is scaled at the end.
//
// Compiled for T, D, INNER, WARPS (columns of a block / 32), GATED (0 or 1). TP is T rounded up to 8, and both
// weights come padded with zeros: (2 * INNER, TP) and (TP, INNER). Grid (D / (32 * WARPS), B).

constexpr int TP = (T + 7) / 8 * 8;
constexpr int COLUMNS = 32 * WARPS, THREADS = 32 * WARPS;
constexpr int UNITS = 32;                                  // inner units a stage
constexpr int W1_STRIDE = TP / 8 % 2 ? TP : TP + 8;        // an odd number of 16-byte pieces: no
constexpr int W2_STRIDE = UNITS + 8;                       // bank is hit twice by ldmatrix
constexpr int X_STRIDE = COLUMNS + 8;
constexpr int W1_SIZE = 2 * UNITS * W1_STRIDE, W2_SIZE = TP * W2_STRIDE;
constexpr int STAGE = W1_SIZE + W2_SIZE, STAGES = 3;
constexpr int FULL = T % 16 > 8 ? T / 16 + 1 : T / 16;     // steps of 16 positions
constexpr bool HALF = T % 16 > 0 && T % 16 <= 8;           // and one of 8
constexpr int X_ROWS = FULL * 16 + HALF * 8;
constexpr int N_TILES = TP / 8;

__device__ __forceinline__ float silu_times(float gate, float up) { // both rounded as products are
  return rounded(silu(rounded(gate))) * rounded(up);
}

__device__ __forceinline__ void fetch(bf16* stage, const bf16* w1, const bf16* w2, int first) {
  constexpr int PIECES = TP / 8;
#pragma unroll 2
  for (int i = threadIdx.x; i < 2 * UNITS * PIECES; i += THREADS) {
    const int row = i / PIECES, piece = i % PIECES; // rows 0..UNITS-1 are gates, then ups
    const int source = row < UNITS ? first + row : INNER + first + row - UNITS;
    copy16(stage + row * W1_STRIDE + piece * 8, w1 + (long long)source * TP + piece * 8);
  }
#pragma unroll 2
  for (int i = threadIdx.x; i < TP * (UNITS / 8); i += THREADS) {
    const int row = i / (UNITS / 8), piece = i % (UNITS / 8);
    copy16(stage + W1_SIZE + row * W2_STRIDE + piece * 8,
           w2 + (long long)row * INNER + first + piece * 8);
  }
}

// The tile in shared memory and its T rows of COLUMNS numbers in global memory.
__device__ __forceinline__ void store_tile(bf16* to, const bf16* tile) {
#pragma unroll 2
  for (int i = threadIdx.x; i < T * (COLUMNS / 8); i += THREADS) {
    const int row = i / (COLUMNS / 8), piece = i % (COLUMNS / 8);
    *(Vec8*)(to + (long long)row * D + piece * 8) = *(const Vec8*)(tile + row * X_STRIDE + piece * 8);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    mlp_t_forward(const bf16* x, const bf16* w1, const bf16* w2, bf16* out, KEPT(bf16* total)
                  int eps_bits, int gate_eps_bits) {
  extern __shared__ __align__(16) bf16 memory[];
  bf16* tile = memory;
  bf16* stages = memory + X_ROWS * X_STRIDE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const long long origin = (long long)blockIdx.y * T * D + blockIdx.x * COLUMNS;

#pragma unroll 2
  for (int i = threadIdx.x; i < T * (COLUMNS / 8); i += THREADS) {
    const int row = i / (COLUMNS / 8), piece = i % (COLUMNS / 8);
    copy16(tile + row * X_STRIDE + piece * 8, x + origin + (long long)row * D + piece * 8);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < (X_ROWS - T) * COLUMNS; i += THREADS)
    tile[(T + i / COLUMNS) * X_STRIDE + i % COLUMNS] = 0;
  asm volatile("cp.async.commit_group;");
#pragma unroll 1
  for (int s = 0; s < STAGES - 1; ++s) {
    fetch(stages + s * STAGE, w1, w2, s * UNITS);
    asm volatile("cp.async.commit_group;");
  }
  asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1));
  __syncthreads();

  // X^T, two tiles of 16 columns: the rows of a stored 8 x 8 matrix are positions, so transposed.
  unsigned int a[2][FULL + HALF][4];
  const int matrix = lane / 8, line = lane % 8;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const bf16* columns = tile + warp * 32 + m * 16 + matrix % 2 * 8;
#pragma unroll
    for (int k = 0; k < FULL; ++k)
      load4_transposed(a[m][k], columns + (k * 16 + line + matrix / 2 * 8) * X_STRIDE);
    if (HALF)
      load2_transposed(a[m][FULL], columns + (FULL * 16 + line) * X_STRIDE);
  }

  float y[2][N_TILES][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        y[m][n][i] = 0.f;
  float product_squares[2][2] = {{0.f, 0.f}, {0.f, 0.f}}; // of columns d and d + 8 of both tiles

  constexpr int ROUNDS = INNER / UNITS;
  for (int round = 0; round < ROUNDS; ++round) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads(); // this stage has arrived, and everybody is done with the one before
    const int next = round + STAGES - 1;
    if (next < ROUNDS)
      fetch(stages + next % STAGES * STAGE, w1, w2, next * UNITS);
    asm volatile("cp.async.commit_group;");
    const bf16* first = stages + round % STAGES * STAGE;
    const bf16* second = first + W1_SIZE;
#pragma unroll 1
    for (int half = 0; half < UNITS / 16; ++half) {
      float g[2][2][4], u[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            g[m][n][i] = u[m][n][i] = 0.f;
      const bf16* gates = first + (half * 16 + line + matrix / 2 * 8) * W1_STRIDE + matrix % 2 * 8;
      const bf16* ups = gates + UNITS * W1_STRIDE;
#pragma unroll
      for (int k = 0; k < FULL; ++k) {
        unsigned int b[4];
        load4(b, gates + k * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply16(g[m][0], a[m][k], b);
          multiply16(g[m][1], a[m][k], b + 2);
        }
        load4(b, ups + k * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply16(u[m][0], a[m][k], b);
          multiply16(u[m][1], a[m][k], b + 2);
        }
      }
      if (HALF) { // two 8 x 8 matrices a weight: gates in b[0], b[1], ups in b[2], b[3]
        unsigned int b[4];
        const bf16* from = first + ((matrix / 2) * UNITS + half * 16 + matrix % 2 * 8 + line) * W1_STRIDE;
        load4(b, from + FULL * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            multiply8(g[m][n], a[m][FULL], b[n]);
            multiply8(u[m][n], a[m][FULL], b[2 + n]);
          }
      }
      unsigned int h[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* gate = g[m][i / 2] + i % 2 * 2;
          const float* up = u[m][i / 2] + i % 2 * 2;
          h[m][i] = pack(silu_times(gate[0], up[0]), silu_times(gate[1], up[1]));
          if (GATED) {
            const float one = rounded(gate[0]) * rounded(up[0]), two = rounded(gate[1]) * rounded(up[1]);
            product_squares[m][i % 2] += one * one + two * two;
          }
        }
      const bf16* downs = second + (line + matrix / 2 * 8) * W2_STRIDE + half * 16 + matrix % 2 * 8;
#pragma unroll
      for (int n = 0; n + 1 < N_TILES; n += 2) {
        unsigned int b[4];
        load4(b, downs + n * 8 * W2_STRIDE);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply16(y[m][n], h[m], b);
          multiply16(y[m][n + 1], h[m], b + 2);
        }
      }
      if (N_TILES % 2) {
        unsigned int b[2];
        load2(b, second + ((N_TILES - 1) * 8 + line) * W2_STRIDE + half * 16 + matrix % 2 * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m)
          multiply16(y[m][N_TILES - 1], h[m], b);
      }
    }
  }

  if (GATED) { // four lanes have the inner units of a column between them
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float squares = product_squares[m][column];
        squares += __shfl_xor_sync(0xffffffffu, squares, 1);
        squares += __shfl_xor_sync(0xffffffffu, squares, 2);
        const float scale = rsqrtf(squares / INNER + __int_as_float(gate_eps_bits));
#pragma unroll
        for (int n = 0; n < N_TILES; ++n) {
          y[m][n][column * 2] *= scale;
          y[m][n][column * 2 + 1] *= scale;
        }
      }
  }

  // y[m][n] = {(d, t), (d, t + 1), (d + 8, t), (d + 8, t + 1)}. By way of shared memory, where the
  // stages were, a thread gets a column: much less code than norms of what the registers hold.
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  bf16* sums = stages;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = n * 8 + lane % 4 * 2 + i % 2;
        if (t < T)
          sums[t * X_STRIDE + warp * 32 + m * 16 + i / 2 * 8 + lane / 4] = narrowed(y[m][n][i]);
      }
  __syncwarp();
  tile += threadIdx.x;
  sums += threadIdx.x;
  float squares = 0.f;
#pragma unroll 4
  for (int t = 0; t < T; ++t) {
    const float sum = rounded(widened(tile[t * X_STRIDE]) + widened(sums[t * X_STRIDE]));
    sums[t * X_STRIDE] = narrowed(sum);
    squares += sum * sum;
  }
  const float scale = rsqrtf(squares / T + __int_as_float(eps_bits));
#pragma unroll 4
  for (int t = 0; t < T; ++t)
    tile[t * X_STRIDE] = narrowed(widened(sums[t * X_STRIDE]) * scale);
  __syncthreads();
#if KEEP
  store_tile(total + origin, stages);
#endif
  store_tile(out + origin, memory);
}
