// silu(gate) * up of gate_up @ x in one kernel, for Hopper's tensor cores (sm_90a).
//
// Compiled for WIDTH (numbers of a row of x) and INNER (of h). A block keeps SLICE rows
// of the weight in shared memory for its whole life, so that they are read once, and goes over every
// (2 * gridDim.y)-th tile of 64 rows of x with each of its two groups of four warps; while one
// group finishes a tile the other keeps the tensor cores busy. x goes from global memory to
// the registers that wgmma takes its left factor from; the next tile's is on its way early.
//
// Two orders are chosen freely. A sum over k may run in any order: lane q of four takes the 8 numbers
// 8q to 8q + 7 of 32, one 16-byte load, where the tensor core expects the pairs 2q and 2q + 8 of
// two times 16, so the weight's numbers are put down in that order. And its rows are put down so that
// a lane's results of four 8-column results are 8 neighbouring columns: one 16-byte store.

constexpr int SLICE = 192, RESULTS = SLICE / 2; // a lane has 2 rows of each 8 columns' pair
constexpr int CHUNKS = WIDTH / 32, EARLY = CHUNKS / 2;
constexpr int PANEL = SLICE * 64; // numbers of 64 k's: rows of 128 bytes, swizzled

// d (64 x 192 of four warps) += a (64 x 16) * b (16 x 192 in shared memory), or = where `add` is 0.
__device__ __forceinline__ void multiply192(float* d, unsigned int a0, unsigned int a1,
                                            unsigned int a2, unsigned int a3,
                                            unsigned long long b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %101, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "{%96, %97, %98, %99}, %100, p, 1, 1, 0;\n}\n"
      : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56),
        EIGHT(64), EIGHT(72), EIGHT(80), EIGHT(88)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add)
      : "memory");
}

// What a lane has of a tile of x: of rows g and g + 8, numbers 8q to 8q + 7 of each 32 of a half.
struct Half {
  Vec8 part[EARLY][2];
};

// The compiler may not move this load to where its numbers are used.
__device__ __forceinline__ void load16(Vec8& numbers, const bf16* from) {
  unsigned int* to = numbers.pair;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
}

__device__ __forceinline__ void load_half(Half& half, const bf16* x, int upper, int rows, int at) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = upper + 8 * r < rows ? upper + 8 * r : rows - 1;
    const bf16* from = x + (long long)row * WIDTH + at * EARLY * 32 + threadIdx.x % 4 * 8;
#pragma unroll
    for (int c = 0; c < EARLY; ++c)
      load16(half.part[c][r], from + c * 32);
  }
}

__device__ __forceinline__ void multiply_half(float* d, const Half& half, unsigned long long b,
                                              int at) {
  begin_products();
#pragma unroll
  for (int c = 0; c < EARLY; ++c)
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int chunk = at * EARLY + c; // its 32 k's are 64 of a row's 128 bytes
      const unsigned int *upper = half.part[c][0].pair, *lower = half.part[c][1].pair;
      multiply192(d, upper[2 * s], lower[2 * s], upper[2 * s + 1], lower[2 * s + 1],
                  b + chunk / 2 * (PANEL * 2 / 16) + chunk % 2 * 4 + s * 2, chunk || s);
    }
  end_products();
}

// The groups multiply in turns: in step, both would finish their tiles with the tensor cores idle.
__device__ __forceinline__ void await_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
__device__ __forceinline__ void give_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(1 + group) : "memory");
}

// Put 8 numbers of row n, from k = 8 * piece on, where wgmma will look for them.
__device__ __forceinline__ void put_down(bf16* slice, int n, int piece, const Vec8& numbers) {
  bf16* row = slice + piece / 8 * PANEL + n * 64 + piece % 4 * 2;
#pragma unroll
  for (int p = 0; p < 4; ++p)
    *(unsigned int*)(row + ((piece / 4 % 2 * 4 + p) ^ (n % 8)) * 8) = numbers.pair[p];
}

// The column, of 32, whose results shall be the n-th: lane q gets 8q to 8q + 7 of four times 8.
__device__ __forceinline__ int column_of(int n) {
  return n / 32 * 32 + n % 8 / 2 * 8 + n % 32 / 8 * 2 + n % 2;
}

__device__ __forceinline__ void finish_slice() {
  show_to_products();
  __syncthreads();
}

// weight (2 * INNER, WIDTH), h (rows, INNER). Grid (INNER / 96, any): a block makes 96 columns of h.
extern "C" __global__ void __launch_bounds__(256, 1)
    swiglu_product(const bf16* x, const bf16* weight, bf16* h, int rows) {
  extern __shared__ __align__(1024) bf16 slice[];
  const int first = blockIdx.x * (SLICE / 2);
  for (int i = threadIdx.x; i < SLICE * WIDTH / 8; i += 256) {
    const int n = i / (WIDTH / 8), piece = i % (WIDTH / 8);
    const int row = n / (SLICE / 2) * INNER + first + column_of(n % (SLICE / 2));
    put_down(slice, n, piece, *(const Vec8*)(weight + row * WIDTH + piece * 8));
  }
  finish_slice();
  const unsigned long long b = descriptor(lower_half(slice));
  const int lane = threadIdx.x % 32, inside = threadIdx.x / 32 % 4 * 16 + lane / 4;
  const int tiles = (rows + 63) / 64, step = 2 * gridDim.y;
  const int group = threadIdx.x / 128, rounds = (tiles + step - 1) / step;
  int tile = 2 * blockIdx.y + group;
  Half early, late;
  load_half(early, x, tile * 64 + inside, rows, 0);
  load_half(late, x, tile * 64 + inside, rows, 1);
  if (group == 1)
    give_turn(0);
  for (int round = 0; round < rounds; ++round, tile += step) {
    float d[RESULTS];
    await_turn(group);
    multiply_half(d, early, b, 0);
    multiply_half(d, late, b, 1);
    if (group == 0 || round + 1 < rounds)
      give_turn(1 - group);
    const int upper = tile * 64 + inside, next = upper + step * 64;
    wait_for_products<1>();
    load_half(early, x, next, rows, 0);
    wait_for_products<0>();
    pin<RESULTS>(d);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < SLICE / 64; ++n) {
        Vec8 product;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float* g = d + (4 * n + k) * 4 + 2 * r;
          const float* u = g + RESULTS / 2;
          const unsigned int gate = pack(g[0], g[1]), up = pack(u[0], u[1]);
          product.pair[k] = pack(silu_times(low(gate), low(up)), silu_times(high(gate), high(up)));
        }
        const long long row = upper + 8 * r, column = first + n * 32 + lane % 4 * 8;
        if (row < rows)
          *(Vec8*)(h + row * INNER + column) = product;
      }
      if (r == 0) // earlier there are no registers for it
        load_half(late, x, next, rows, 1);
    }
  }
}
