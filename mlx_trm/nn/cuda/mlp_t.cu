// rms_norm(x + swiglu over positions) in one kernel: x is read once and the result written once,
// instead of 30 times as much for the products in between. And its gradient, but for the weights'.
//
// The scheme of flash attention, with columns of x as queries: a warp keeps 16 * TILES columns d of
// one sequence. For 16 inner units at a time it multiplies them by gate and up rows of the first
// weight, G^T = X^T Wg^T, takes h = silu(g) * u in registers, whose layout as a result is the one
// an operand has, and adds H^T Wd^T to its outputs, columns x T. The norm over T stays in the warp.
//
// Loops are unrolled no more than pays: MLX hashes a kernel's code at every launch, which took
// 60 microseconds for the 72 KiB that this once had.
//
// Compiled for T, D, INNER, WARPS (of a block), TILES (of 16 columns, of a warp: 1 or 2) and STAGES
// (parts of the weights in shared memory, at least 2 and at most INNER / UNITS + 1). TP is T
// rounded up to 8, and both weights come padded with zeros: (2 * INNER, TP) and (TP, INNER). Grid
// (D / COLUMNS, B).

constexpr int TP = (T + 7) / 8 * 8;
constexpr int COLUMNS = 16 * TILES * WARPS, THREADS = 32 * WARPS;
constexpr int UNITS = 32;                           // inner units a stage
constexpr int W1_STRIDE = TP / 8 % 2 ? TP : TP + 8; // an odd number of 16-byte pieces: no
constexpr int W2_STRIDE = UNITS + 8;                // bank is hit twice by ldmatrix
constexpr int X_STRIDE = COLUMNS + 8;
constexpr int W1_SIZE = 2 * UNITS * W1_STRIDE, W2_SIZE = TP * W2_STRIDE;
constexpr int STAGE = W1_SIZE + W2_SIZE;
constexpr int FULL = T % 16 > 8 ? T / 16 + 1 : T / 16; // steps of 16 positions
constexpr bool HALF = T % 16 > 0 && T % 16 <= 8;       // and one of 8
constexpr int X_ROWS = FULL * 16 + HALF * 8;
constexpr int N_TILES = TP / 8;

__device__ __forceinline__ float swiglu_of_sums(float gate, float up) { // rounded as products are
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

#ifdef MLP_T_FORWARD
// With GATED (0 or 1) the product is a gate norm's, sigmoid(g) * rms_norm(g * u). A column's scale
// in that norm is one number, so it waits until the outputs are summed: H is silu(g) * u as without
// it, the squares of g * u are summed on the way, and each column of outputs is scaled at the end.

// The tile in shared memory and its T rows of COLUMNS numbers in global memory.
__device__ __forceinline__ void store_tile(bf16* to, const bf16* tile) {
#pragma unroll 2
  for (int i = threadIdx.x; i < T * (COLUMNS / 8); i += THREADS) {
    const int row = i / (COLUMNS / 8), piece = i % (COLUMNS / 8);
    *(Vec8*)(to + (long long)row * D + piece * 8) =
        *(const Vec8*)(tile + row * X_STRIDE + piece * 8);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    mlp_t_forward(const bf16* x, const bf16* w1, const bf16* w2, bf16* out,
                  KEPT(bf16* total) int eps_bits, int gate_eps_bits) {
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
  end_copies();
#pragma unroll 1
  for (int s = 0; s < STAGES - 1; ++s) {
    fetch(stages + s * STAGE, w1, w2, s * UNITS);
    end_copies();
  }
  wait_for_copies<STAGES - 1>();
  __syncthreads();

  // X^T, TILES tiles of 16 columns: the rows of a stored 8 x 8 matrix are positions, so transposed.
  unsigned int a[TILES][FULL + HALF][4];
  const int matrix = lane / 8, line = lane % 8;
#pragma unroll
  for (int m = 0; m < TILES; ++m) {
    const bf16* columns = tile + warp * 16 * TILES + m * 16 + matrix % 2 * 8;
#pragma unroll
    for (int k = 0; k < FULL; ++k)
      load4_transposed(a[m][k], columns + (k * 16 + line + matrix / 2 * 8) * X_STRIDE);
    if (HALF)
      load2_transposed(a[m][FULL], columns + (FULL * 16 + line) * X_STRIDE);
  }

  float y[TILES][N_TILES][4];
#pragma unroll
  for (int m = 0; m < TILES; ++m)
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        y[m][n][i] = 0.f;
  float product_squares[TILES][2] = {}; // of columns d and d + 8 of a tile

  constexpr int ROUNDS = INNER / UNITS;
  for (int round = 0; round < ROUNDS; ++round) {
    wait_for_copies<STAGES - 2>();
    __syncthreads(); // this stage has arrived, and everybody is done with the one before
    const int next = round + STAGES - 1;
    if (next < ROUNDS)
      fetch(stages + next % STAGES * STAGE, w1, w2, next * UNITS);
    end_copies();
    const bf16* first = stages + round % STAGES * STAGE;
    const bf16* second = first + W1_SIZE;
#pragma unroll 1
    for (int half = 0; half < UNITS / 16; ++half) {
      float g[TILES][2][4], u[TILES][2][4];
#pragma unroll
      for (int m = 0; m < TILES; ++m)
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
        for (int m = 0; m < TILES; ++m) {
          multiply16(g[m][0], a[m][k], b);
          multiply16(g[m][1], a[m][k], b + 2);
        }
        load4(b, ups + k * 16);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
          multiply16(u[m][0], a[m][k], b);
          multiply16(u[m][1], a[m][k], b + 2);
        }
      }
      if (HALF) { // two 8 x 8 matrices a weight: gates in b[0], b[1], ups in b[2], b[3]
        unsigned int b[4];
        const bf16* from =
            first + ((matrix / 2) * UNITS + half * 16 + matrix % 2 * 8 + line) * W1_STRIDE;
        load4(b, from + FULL * 16);
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            multiply8(g[m][n], a[m][FULL], b[n]);
            multiply8(u[m][n], a[m][FULL], b[2 + n]);
          }
      }
      unsigned int h[TILES][4];
#pragma unroll
      for (int m = 0; m < TILES; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* gate = g[m][i / 2] + i % 2 * 2;
          const float* up = u[m][i / 2] + i % 2 * 2;
          h[m][i] = pack(swiglu_of_sums(gate[0], up[0]), swiglu_of_sums(gate[1], up[1]));
          if (GATED) {
            const float one = rounded(gate[0]) * rounded(up[0]),
                        two = rounded(gate[1]) * rounded(up[1]);
            product_squares[m][i % 2] += one * one + two * two;
          }
        }
      const bf16* downs = second + (line + matrix / 2 * 8) * W2_STRIDE + half * 16 + matrix % 2 * 8;
#pragma unroll
      for (int n = 0; n + 1 < N_TILES; n += 2) {
        unsigned int b[4];
        load4(b, downs + n * 8 * W2_STRIDE);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
          multiply16(y[m][n], h[m], b);
          multiply16(y[m][n + 1], h[m], b + 2);
        }
      }
      if (N_TILES % 2) {
        unsigned int b[2];
        load2(b, second + ((N_TILES - 1) * 8 + line) * W2_STRIDE + half * 16 + matrix % 2 * 8);
#pragma unroll
        for (int m = 0; m < TILES; ++m)
          multiply16(y[m][N_TILES - 1], h[m], b);
      }
    }
  }

  if (GATED) { // four lanes have the inner units of a column between them
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const float squares = quad_sum(product_squares[m][column]);
        const float scale = rsqrtf(squares / INNER + __int_as_float(gate_eps_bits));
#pragma unroll
        for (int n = 0; n < N_TILES; ++n) {
          y[m][n][column * 2] *= scale;
          y[m][n][column * 2 + 1] *= scale;
        }
      }
  }

  // y[m][n] = {(d, t), (d, t + 1), (d + 8, t), (d + 8, t + 1)}. By way of shared memory, where the
  // stages were, a thread gets a column, or half of its positions: much less code than norms of
  // what the registers hold.
  wait_for_copies<0>();
  __syncthreads();
  bf16* sums = stages;
#pragma unroll
  for (int m = 0; m < TILES; ++m)
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = n * 8 + lane % 4 * 2 + i % 2;
        if (t < T)
          sums[t * X_STRIDE + warp * 16 * TILES + m * 16 + i / 2 * 8 + lane / 4] =
              narrowed(y[m][n][i]);
      }
  __syncwarp();
  constexpr int SHARES = 2 / TILES; // lanes that have the positions of a column between them
  const int column = warp * 16 * TILES + lane % (16 * TILES), share = lane / (16 * TILES);
  tile += column;
  sums += column;
  float squares = 0.f;
#pragma unroll 4
  for (int t = share; t < T; t += SHARES) {
    const float sum = rounded(widened(tile[t * X_STRIDE]) + widened(sums[t * X_STRIDE]));
    sums[t * X_STRIDE] = narrowed(sum);
    squares += sum * sum;
  }
  if (SHARES == 2)
    squares += __shfl_xor_sync(0xffffffffu, squares, 16);
  const float scale = rsqrtf(squares / T + __int_as_float(eps_bits));
#pragma unroll 4
  for (int t = share; t < T; t += SHARES)
    tile[t * X_STRIDE] = narrowed(widened(sums[t * X_STRIDE]) * scale);
  __syncthreads();
#if KEEP
  store_tile(total + origin, stages);
#endif
  store_tile(out + origin, memory);
}
#endif

#ifdef MLP_T_BACKWARD
static_assert(TILES == 1, "a warp's registers hold no more columns");

// From the gradient of the result, that of x, and what the weights' gradients are products of:
// those of what was normalised (d_total) and of gate and up, h, and x once more. These four are
// laid out as (positions or units, B, D), so that a weight's gradient is one product whose sum runs
// over B and D.
//
// A result's layout is an operand's here too: the gradient of the norm is taken in the fragments of
// d_total^T that are multiplied by Wd, and they are what the sums for d_x begin with; gradients of
// gate and up go on as operands of the product with the first weight.
constexpr int STEPS = FULL + HALF;
constexpr int TILE =
    (X_ROWS < 48 ? 48 : X_ROWS) * X_STRIDE; // three times 16 units are put down in one

// A warp's 16 columns between shared and global memory; two lanes a row. What is fetched is T rows
// and zeros behind them, as a group of cp.async.
__device__ __forceinline__ void fetch_columns(bf16* tile, const bf16* from) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16 + lane % 2 * 8;
#pragma unroll 2
  for (int row = lane / 2; row < X_ROWS; row += 16) {
    if (row < T)
      copy16(tile + row * X_STRIDE + first, from + (long long)row * D + first);
    else
      *(Vec8*)(tile + row * X_STRIDE + first) = Vec8{{0, 0, 0, 0}};
  }
  end_copies();
}
__device__ __forceinline__ void store_columns(bf16* to, long long stride, const bf16* tile,
                                              int rows) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16 + lane % 2 * 8;
#pragma unroll 1
  for (int row = lane / 2; row < rows; row += 16)
    *(Vec8*)(to + row * stride + first) = *(const Vec8*)(tile + row * X_STRIDE + first);
}

// The fragments of a tile's transpose, columns x positions.
__device__ __forceinline__ void load_columns(unsigned int (*a)[4], const bf16* tile) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
  const bf16* columns = tile + threadIdx.x / 32 * 16 + matrix % 2 * 8;
#pragma unroll
  for (int k = 0; k < FULL; ++k)
    load4_transposed(a[k], columns + (k * 16 + line + matrix / 2 * 8) * X_STRIDE);
  if (HALF)
    load2_transposed(a[FULL], columns + (FULL * 16 + line) * X_STRIDE);
}

extern "C" __global__ void __launch_bounds__(THREADS, 12 / WARPS)
    mlp_t_backward(const bf16* x, const bf16* w1, const bf16* w2, const bf16* total,
                   const bf16* d_out, bf16* d_x, bf16* d_total, bf16* x_again, bf16* h,
                   bf16* d_inner, int eps_bits) {
  extern __shared__ __align__(16) bf16 memory[];
  bf16 *tile = memory, *other = memory + TILE, *stages = memory + 2 * TILE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int matrix = lane / 8, line = lane % 8, group = lane / 4, pair = lane % 4 * 2;
  const long long origin = (long long)blockIdx.y * T * D + blockIdx.x * COLUMNS;
  const long long stride = (long long)gridDim.y * D; // between rows of (positions or units, B, D)
  const long long at = (long long)blockIdx.y * D + blockIdx.x * COLUMNS;
  d_total += at;
  x_again += at;
  h += at;
  d_inner += at;

  fetch_columns(tile, total + origin);
  fetch_columns(other, d_out + origin);
  fetch(stages, w1, w2, 0);
  end_copies();
  wait_for_copies<1>();
  __syncwarp();
  unsigned int a[STEPS][4], d[STEPS][4]; // of the sum, later of x; of the gradient
  load_columns(a, tile);
  load_columns(d, other);
  __syncwarp();
  fetch_columns(other, x + origin);

  // A lane has of columns `group` and `group` + 8 a quarter of the positions.
  float squares[2] = {0.f, 0.f}, products[2] = {0.f, 0.f};
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
#pragma unroll
    for (int i = 0; i < (k < FULL ? 4 : 2); ++i) {
      squares[i % 2] += low(a[k][i]) * low(a[k][i]) + high(a[k][i]) * high(a[k][i]);
      products[i % 2] += low(a[k][i]) * low(d[k][i]) + high(a[k][i]) * high(d[k][i]);
    }
  float scale[2], pull[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      squares[i] += __shfl_xor_sync(0xffffffffu, squares[i], offset);
      products[i] += __shfl_xor_sync(0xffffffffu, products[i], offset);
    }
    scale[i] = rsqrtf(squares[i] / T + __int_as_float(eps_bits));
    pull[i] = products[i] / T * scale[i] * scale[i];
  }
  bf16* column = tile + group * X_STRIDE + warp * 16 + pair;
  float y[N_TILES][4];
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
#pragma unroll
    for (int i = 0; i < (k < FULL ? 4 : 2); ++i) {
      const float s = scale[i % 2], p = pull[i % 2];
      d[k][i] =
          pack(s * (low(d[k][i]) - low(a[k][i]) * p), s * (high(d[k][i]) - high(a[k][i]) * p));
      y[k * 2 + i / 2][i % 2 * 2] = low(d[k][i]);
      y[k * 2 + i / 2][i % 2 * 2 + 1] = high(d[k][i]);
      *(unsigned int*)(column + (k * 16 + i / 2 * 8) * X_STRIDE + i % 2 * 8) = turned(d[k][i]);
    }
  __syncwarp();
  store_columns(d_total, stride, tile, T);
  wait_for_copies<0>();
  __syncwarp();
  load_columns(a, other);
  store_columns(x_again, stride, other, T);

  constexpr int ROUNDS = INNER / UNITS;
#pragma unroll 1
  for (int round = 0; round < ROUNDS; ++round) {
    wait_for_copies<0>();
    __syncthreads(); // this stage has arrived, and everybody is done with the one before
    if (round + 1 < ROUNDS)
      fetch(stages + (round + 1) % STAGES * STAGE, w1, w2, (round + 1) * UNITS);
    end_copies();
    const bf16* first = stages + round % STAGES * STAGE;
    const bf16* second = first + W1_SIZE;
#pragma unroll 1
    for (int half = 0; half < UNITS / 16; ++half) {
      float g[2][4], u[2][4], e[2][4]; // gate, up and the gradient of h
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          g[n][i] = u[n][i] = e[n][i] = 0.f;
      const bf16* gates = first + (half * 16 + line + matrix / 2 * 8) * W1_STRIDE + matrix % 2 * 8;
      const bf16* downs = second + (line + matrix % 2 * 8) * W2_STRIDE + half * 16 + matrix / 2 * 8;
#pragma unroll
      for (int k = 0; k < FULL; ++k) {
        unsigned int b[4];
        load4(b, gates + k * 16);
        multiply16(g[0], a[k], b);
        multiply16(g[1], a[k], b + 2);
        load4(b, gates + UNITS * W1_STRIDE + k * 16);
        multiply16(u[0], a[k], b);
        multiply16(u[1], a[k], b + 2);
        load4_transposed(b, downs + k * 16 * W2_STRIDE);
        multiply16(e[0], d[k], b);
        multiply16(e[1], d[k], b + 2);
      }
      if (HALF) {
        unsigned int b[4];
        load4(b, first + (matrix / 2 * UNITS + half * 16 + matrix % 2 * 8 + line) * W1_STRIDE +
                     FULL * 16);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          multiply8(g[n], a[FULL], b[n]);
          multiply8(u[n], a[FULL], b[2 + n]);
        }
        load2_transposed(b, second + (FULL * 16 + line) * W2_STRIDE + half * 16 + matrix % 2 * 8);
        multiply8(e[0], d[FULL], b[0]);
        multiply8(e[1], d[FULL], b[1]);
      }
      unsigned int d_gates[4], d_ups[4], hidden[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = i / 2, j = i % 2 * 2;
        const float3 one = swiglu_gradients(rounded(g[n][j]), rounded(u[n][j]), rounded(e[n][j]));
        const float3 two =
            swiglu_gradients(rounded(g[n][j + 1]), rounded(u[n][j + 1]), rounded(e[n][j + 1]));
        d_gates[i] = pack(one.x, two.x);
        d_ups[i] = pack(one.y, two.y);
        hidden[i] = pack(one.z, two.z);
      }
      const bf16* rows = first + (half * 16 + line + matrix % 2 * 8) * W1_STRIDE + matrix / 2 * 8;
#pragma unroll
      for (int n = 0; n + 1 < N_TILES; n += 2) {
        unsigned int b[4];
        load4_transposed(b, rows + n * 8);
        multiply16(y[n], d_gates, b);
        multiply16(y[n + 1], d_gates, b + 2);
        load4_transposed(b, rows + UNITS * W1_STRIDE + n * 8);
        multiply16(y[n], d_ups, b);
        multiply16(y[n + 1], d_ups, b + 2);
      }
      if (N_TILES % 2) {
        unsigned int b[4];
        load4_transposed(
            b, first + (matrix / 2 * UNITS + half * 16 + matrix % 2 * 8 + line) * W1_STRIDE +
                   (N_TILES - 1) * 8);
        multiply16(y[N_TILES - 1], d_gates, b);
        multiply16(y[N_TILES - 1], d_ups, b + 2);
      }
      // Put down turned, h's 16 units, then those of the gates and of the ups, to be written as
      // rows.
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        bf16* to = column + i / 2 * 8 * X_STRIDE + i % 2 * 8;
        *(unsigned int*)to = turned(hidden[i]);
        *(unsigned int*)(to + 16 * X_STRIDE) = turned(d_gates[i]);
        *(unsigned int*)(to + 32 * X_STRIDE) = turned(d_ups[i]);
      }
      __syncwarp();
      const long long unit = (round * UNITS + half * 16) * stride;
      store_columns(h + unit, stride, tile, 16);
      store_columns(d_inner + unit, stride, tile + 16 * X_STRIDE, 16);
      store_columns(d_inner + INNER * stride + unit, stride, tile + 32 * X_STRIDE, 16);
    }
  }

  __syncwarp();
#pragma unroll
  for (int n = 0; n < N_TILES; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *(unsigned int*)(column + n * 8 * X_STRIDE + i * 8) =
          turned(pack(y[n][i * 2], y[n][i * 2 + 1]));
  __syncwarp();
  store_columns(d_x + origin, D, tile, T);
}
#endif
