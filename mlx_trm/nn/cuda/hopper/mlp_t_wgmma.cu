// rms_norm(x + swiglu over positions), and its gradient, for Hopper's tensor cores (sm_90a): what
// mlp_t.cu computes, as it does, with wgmma in place of mma.sync.
//
// A group of four warps has 64 columns of one sequence; GROUPS of them share the weights, which
// pass through shared memory in parts of 32 inner units, STAGES of them at a time. In global memory
// they lie as products want them in shared memory (mlp_t_wgmma.py), so that a part takes a copy for
// each weight, for which no thread waits. While one group takes its silu the others keep the tensor
// cores busy; the warp that is last to be done with a part has the next one fetched in its place.
//
// Compiled for T (65 to 104), D (a multiple of 64), INNER (of 32), GROUPS, STAGES. Grid (tiles of
// 64 columns / GROUPS).

constexpr int THREADS = 128 * GROUPS, WARPS = 4 * GROUPS;
constexpr int STEPS = (T + 15) / 16;              // of 16 positions
constexpr int ROWS = STEPS * 16, STRIDE = 64 + 8; // of a tile of 64 columns of x
constexpr int UNITS = 32, PARTS = INNER / UNITS, DOWN_ROWS = 104, N_TILES = DOWN_ROWS / 8;
// Numbers of the weights of a part. Pieces of 8 numbers of all rows lie behind each other.
constexpr int GATE_UP = ROWS * 64;      // 32 gates and 32 ups, of the positions
constexpr int DOWN = DOWN_ROWS * UNITS; // a row for each position, those beyond T zeros
static_assert(STAGES >= 2, "a part is awaited before the one before it is released");

// d (64 x 32 of four warps) += a (64 x 16) * b (16 x 32 in shared memory), or = where `add` is 0.
__device__ __forceinline__ void multiply32(float* d, const unsigned int* a, unsigned long long b,
                                           int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
               "{%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
               : EIGHT(0), EIGHT(8)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)
               : "memory");
}

// d (64 x 104 of four warps) += a (64 x 16) * b (16 x 104 in shared memory), or = where `add` is 0.
__device__ __forceinline__ void multiply104(float* d, const unsigned int* a, unsigned long long b,
                                            int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %57, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n104k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51}, "
               "{%52, %53, %54, %55}, %56, p, 1, 1, 0;\n}\n"
               : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), FOUR(48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)
               : "memory");
}

// Of a group's threads: T rows of 64 columns between global memory, rows of `stride` numbers, and a
// tile in shared memory, whose rows behind them are 0. 8 threads a row.
__device__ __forceinline__ void fetch_tile(bf16* tile, const bf16* from, int thread) {
#pragma unroll 2
  for (int i = thread; i < ROWS * 8; i += 128) {
    bf16* to = tile + i / 8 * STRIDE + i % 8 * 8;
    if (i / 8 < T)
      copy16(to, from + (long long)(i / 8) * D + i % 8 * 8);
    else
      *(Vec8*)to = Vec8{{0, 0, 0, 0}};
  }
  end_copies();
}
__device__ __forceinline__ void store_tile(bf16* to, long long stride, const bf16* tile,
                                           int thread) {
#pragma unroll 1
  for (int i = thread; i < T * 8; i += 128)
    *(Vec8*)(to + i / 8 * stride + i % 8 * 8) = *(const Vec8*)(tile + i / 8 * STRIDE + i % 8 * 8);
}
__device__ __forceinline__ void await_group(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}

// The fragments of a warp's 16 columns of a tile, turned: columns x positions.
__device__ __forceinline__ void load_columns(unsigned int (*a)[4], const bf16* tile) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
  const bf16* from = tile + threadIdx.x / 32 % 4 * 16 + matrix % 2 * 8;
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
    load4_transposed(a[k], from + (k * 16 + line + matrix / 2 * 8) * STRIDE);
}
// Such fragments, or results of that shape, put into the tile; `column` is its first number that
// the lane writes.
__device__ __forceinline__ void put_columns(bf16* column, const unsigned int (*a)[4]) {
#pragma unroll
  for (int k = 0; k < STEPS; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *(unsigned int*)(column + (k * 16 + i / 2 * 8) * STRIDE + i % 2 * 8) = turned(a[k][i]);
}

// The ring of parts in shared memory, each of PART numbers, fetched by COUNT copies, one a weight.
template <int PART, int COUNT> struct Parts {
  bf16* stages;
  const bf16* weights[COUNT];
  int sizes[COUNT];
  unsigned int barriers;
  unsigned int* done; // warps that are done with a stage

  __device__ __forceinline__ void fetch(int part) const {
    const unsigned int barrier = barriers + 8 * (part % STAGES);
    bf16* to = stages + part % STAGES * PART;
    expect_bytes(barrier, PART * 2);
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      copy_bytes(to, weights[k] + part * sizes[k], sizes[k] * 2, barrier);
      to += sizes[k];
    }
  }
  // By one thread of the block, before all others go on.
  __device__ __forceinline__ void begin() const {
#pragma unroll
    for (int k = 0; k < STAGES; ++k) {
      init_barrier(barriers + 8 * k);
      done[k] = 0;
    }
    show_barriers();
#pragma unroll 1
    for (int part = 0; part < STAGES && part < PARTS; ++part)
      fetch(part);
  }
  __device__ __forceinline__ const bf16* await(int part) const {
    await_bytes(barriers + 8 * (part % STAGES), part / STAGES % 2);
    return stages + part % STAGES * PART;
  }
  // By each warp. The last one fetches what comes in this part's place.
  __device__ __forceinline__ void release(int part) const {
    if (threadIdx.x % 32)
      return;
    __threadfence_block();
    const bool last = atomicInc(done + part % STAGES, WARPS - 1) == WARPS - 1; // and is 0 again
    __threadfence_block();
    if (last && part + STAGES < PARTS)
      fetch(part + STAGES);
  }
};

#ifdef MLP_T_WGMMA
// gate_up and down as parts of GATE_UP and of DOWN.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mlp_t_wgmma(const bf16* x, const bf16* gate_up, const bf16* down, bf16* out,
                KEPT(bf16* total) int count, int eps_bits) {
  extern __shared__ __align__(1024) bf16 memory[];
  constexpr int PART = GATE_UP + DOWN;
  bf16* tiles = memory + STAGES * PART;
  unsigned long long* barriers = (unsigned long long*)(tiles + GROUPS * ROWS * STRIDE);
  const Parts<PART, 2> parts = {memory,
                                {gate_up, down},
                                {GATE_UP, DOWN},
                                shared_address(barriers),
                                (unsigned int*)(barriers + STAGES)};
  if (threadIdx.x == 0)
    parts.begin();
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const int own = blockIdx.x * GROUPS + group, number = own < count ? own : count - 1;
  const long long origin = (long long)(number / (D / 64)) * T * D + number % (D / 64) * 64;
  bf16* tile = tiles + group * ROWS * STRIDE;
  bf16* column = tile + lane / 4 * STRIDE + thread / 32 * 16 + lane % 4 * 2;
  fetch_tile(tile, x + origin, thread);
  wait_for_copies<0>();
  __syncthreads();
  unsigned int a[STEPS][4]; // X^T
  load_columns(a, tile);

  float y[N_TILES * 4];
#pragma unroll 1
  for (int part = 0; part < PARTS; ++part) {
    const bf16* weights = parts.await(part);
    const unsigned long long first = plain_descriptor(weights, 64);
    const unsigned long long second = plain_descriptor(weights + GATE_UP, DOWN_ROWS);
    float g[32]; // 32 gates, or rather 4 times 8 of two columns, and ups
    begin_products();
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
      multiply64(g, a[k], first + k * 2 * 64, k);
    end_products();
    wait_for_products<0>(); // and for the last ones for y, so that the part before is done with
    pin<32>(g);
    if (part > 0)
      parts.release(part - 1);
    unsigned int h[2][4];
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float *one = g + n * 4 + r * 2, *two = one + 16;
        const unsigned int gate = pack(one[0], one[1]), up = pack(two[0], two[1]);
        h[n / 2][n % 2 * 2 + r] =
            pack(rounded(silu(low(gate))) * low(up), rounded(silu(high(gate))) * high(up));
      }
    begin_products();
#pragma unroll
    for (int s = 0; s < 2; ++s)
      multiply104(y, h[s], second + s * 2 * DOWN_ROWS, part || s);
    end_products();
  }
  wait_for_products<0>();
  pin<N_TILES * 4>(y);

  float squares[2] = {0.f, 0.f}; // of columns lane / 4 and lane / 4 + 8
#pragma unroll
  for (int n = 0; n < STEPS * 2 && n < N_TILES; ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      unsigned int& pair = a[n / 2][n % 2 * 2 + r];
      const unsigned int more = pack(y[n * 4 + r * 2], y[n * 4 + r * 2 + 1]);
      pair = pack(low(pair) + low(more), high(pair) + high(more));
      squares[r] += low(pair) * low(pair) + high(pair) * high(pair);
    }
#if KEEP
  put_columns(column, a);
  await_group(group);
  if (own < count)
    store_tile(total + origin, D, tile, thread);
  await_group(group);
#endif
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float scale = rsqrtf(quad_sum(squares[r]) / T + __int_as_float(eps_bits));
#pragma unroll
    for (int n = 0; n < STEPS * 2; ++n) {
      unsigned int& pair = a[n / 2][n % 2 * 2 + r];
      pair = pack(low(pair) * scale, high(pair) * scale);
    }
  }
  put_columns(column, a);
  await_group(group);
  if (own < count)
    store_tile(out + origin, D, tile, thread);
}
#endif

#ifdef MLP_T_WGMMA_BACKWARD
constexpr int DOWN_TURNED = ROWS * UNITS; // a row for each unit
constexpr int GATE_UP_TURNED = 2 * DOWN;  // a row for each position: of the gates, then of the ups

// gate_up as parts of GATE_UP, the others as theirs. Results as those of mlp_t_backward in
// mlp_t.cu; rows of d_total, x_again, h and d_inner have `width` numbers, B * D.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mlp_t_wgmma_backward(const bf16* x, const bf16* gate_up, const bf16* down_turned,
                         const bf16* gate_up_turned, const bf16* total, const bf16* d_out,
                         bf16* d_x, bf16* d_total, bf16* x_again, bf16* h, bf16* d_inner, int count,
                         int width, int eps_bits) {
  extern __shared__ __align__(1024) bf16 memory[];
  constexpr int PART = GATE_UP + DOWN_TURNED + GATE_UP_TURNED;
  constexpr int TILE = (ROWS < 96 ? 96 : ROWS) * STRIDE; // three times 32 units are put down in one
  bf16* tiles = memory + STAGES * PART;
  unsigned long long* barriers = (unsigned long long*)(tiles + GROUPS * 2 * TILE);
  const Parts<PART, 3> parts = {memory,
                                {gate_up, down_turned, gate_up_turned},
                                {GATE_UP, DOWN_TURNED, GATE_UP_TURNED},
                                shared_address(barriers),
                                (unsigned int*)(barriers + STAGES)};
  if (threadIdx.x == 0)
    parts.begin();
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const int own = blockIdx.x * GROUPS + group, number = own < count ? own : count - 1;
  const int first_column = number % (D / 64) * 64;
  const long long origin = (long long)(number / (D / 64)) * T * D + first_column;
  const long long at = (long long)(number / (D / 64)) * D + first_column;
  bf16 *tile = tiles + group * 2 * TILE, *other = tile + TILE;
  bf16* column = tile + lane / 4 * STRIDE + thread / 32 * 16 + lane % 4 * 2;
  fetch_tile(tile, total + origin, thread);
  fetch_tile(other, d_out + origin, thread);
  wait_for_copies<0>();
  __syncthreads();
  unsigned int a[STEPS][4], d[STEPS][4]; // of the sum, later of x; of the gradient
  load_columns(a, tile);
  load_columns(d, other);
  await_group(group);
  fetch_tile(other, x + origin, thread);

  float y[N_TILES * 4];
#pragma unroll
  for (int n = 0; n < N_TILES * 4; ++n)
    y[n] = 0.f;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float squares = 0.f, products = 0.f;
#pragma unroll
    for (int n = 0; n < STEPS * 2; ++n) {
      const unsigned int s = a[n / 2][n % 2 * 2 + r], p = d[n / 2][n % 2 * 2 + r];
      squares += low(s) * low(s) + high(s) * high(s);
      products += low(s) * low(p) + high(s) * high(p);
    }
    const float scale = rsqrtf(quad_sum(squares) / T + __int_as_float(eps_bits));
    const float pull = quad_sum(products) / T * scale * scale;
#pragma unroll
    for (int n = 0; n < STEPS * 2; ++n) {
      const unsigned int s = a[n / 2][n % 2 * 2 + r];
      unsigned int& p = d[n / 2][n % 2 * 2 + r];
      p = pack(scale * (low(p) - low(s) * pull), scale * (high(p) - high(s) * pull));
      if (n < N_TILES) {
        y[n * 4 + r * 2] = low(p);
        y[n * 4 + r * 2 + 1] = high(p);
      }
    }
  }
  put_columns(column, d);
  await_group(group);
  if (own < count)
    store_tile(d_total + at, width, tile, thread);
  wait_for_copies<0>();
  await_group(group);
  load_columns(a, other);
  if (own < count)
    store_tile(x_again + at, width, other, thread);

  // Of a warp's 16 columns two lanes write a row.
  const bf16* put = tile + lane / 2 * STRIDE + thread / 32 * 16 + lane % 2 * 8;
  const long long written = at + thread / 32 * 16 + lane % 2 * 8 + (long long)(lane / 2) * width;
  h += written;
  d_inner += written;
  // Of a part, h and the gradients of gates and ups; they are put down turned, and written as rows,
  // while the next part's products are computed.
  unsigned int hidden[2][4], d_gates[2][4], d_ups[2][4];
  const auto write = [&](int part) {
    __syncwarp();
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        bf16* to = column + (s * 16 + i / 2 * 8) * STRIDE + i % 2 * 8;
        *(unsigned int*)to = turned(hidden[s][i]);
        *(unsigned int*)(to + 32 * STRIDE) = turned(d_gates[s][i]);
        *(unsigned int*)(to + 64 * STRIDE) = turned(d_ups[s][i]);
      }
    __syncwarp();
    if (own >= count)
      return;
    const long long unit = (long long)(part * UNITS) * width;
#pragma unroll
    for (int row = 0; row < 32; row += 16) {
      *(Vec8*)(h + unit + row * (long long)width) = *(const Vec8*)(put + row * STRIDE);
      *(Vec8*)(d_inner + unit + row * (long long)width) = *(const Vec8*)(put + (32 + row) * STRIDE);
      *(Vec8*)(d_inner + unit + (INNER + row) * (long long)width) =
          *(const Vec8*)(put + (64 + row) * STRIDE);
    }
  };
#pragma unroll 1
  for (int part = 0; part < PARTS; ++part) {
    const bf16* weights = parts.await(part);
    const unsigned long long first = plain_descriptor(weights, 64);
    const unsigned long long down = plain_descriptor(weights + GATE_UP, UNITS);
    const unsigned long long back = plain_descriptor(weights + GATE_UP + DOWN_TURNED, DOWN_ROWS);
    float g[32], e[16]; // gates and ups; the gradient of h
    begin_products();
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
      multiply64(g, a[k], first + k * 2 * 64, k);
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
      multiply32(e, d[k], down + k * 2 * UNITS, k);
    end_products();
    wait_for_products<1>(); // for the last ones for y, so that the part before is done with
    if (part > 0) {
      parts.release(part - 1);
      write(part - 1);
    }
    wait_for_products<0>();
    pin<32>(g);
    pin<16>(e);
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float *one = g + n * 4 + r * 2, *two = one + 16, *more = e + n * 4 + r * 2;
        const unsigned int gate = pack(one[0], one[1]), up = pack(two[0], two[1]);
        const unsigned int d_h = pack(more[0], more[1]);
        const float3 left = swiglu_gradients(low(gate), low(up), low(d_h));
        const float3 right = swiglu_gradients(high(gate), high(up), high(d_h));
        d_gates[n / 2][n % 2 * 2 + r] = pack(left.x, right.x);
        d_ups[n / 2][n % 2 * 2 + r] = pack(left.y, right.y);
        hidden[n / 2][n % 2 * 2 + r] = pack(left.z, right.z);
      }
    begin_products();
#pragma unroll
    for (int s = 0; s < 2; ++s)
      multiply104(y, d_gates[s], back + s * 2 * DOWN_ROWS, 1);
#pragma unroll
    for (int s = 0; s < 2; ++s)
      multiply104(y, d_ups[s], back + (2 + s) * 2 * DOWN_ROWS, 1);
    end_products();
  }
  wait_for_products<0>();
  write(PARTS - 1);
  pin<N_TILES * 4>(y);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < STEPS * 2; ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      a[n / 2][n % 2 * 2 + r] = n < N_TILES ? pack(y[n * 4 + r * 2], y[n * 4 + r * 2 + 1]) : 0;
  put_columns(column, a);
  await_group(group);
  if (own < count)
    store_tile(d_x + origin, D, tile, thread);
}
#endif
