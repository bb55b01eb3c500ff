// RMS norm of a residual sum, with what is added next, and its gradient, over the last axis (a warp
// a row of SIZE numbers) and over positions (a thread a column pair of one sequence, 8 threads
// sharing the positions).

#ifdef SIZE
// A row has so many vectors of 8, a lane at most PER_LANE of them.
enum { VECTORS = SIZE / 8, PER_LANE = (VECTORS + 31) / 32 };

__device__ __forceinline__ bool exists(int v, int lane) {
  return VECTORS % 32 == 0 || v * 32 + lane < VECTORS;
}

#if defined(ADD_NORM) || defined(ADD_NORM_SUM)
// Gives x + y of a lane's share of a row, rounded, and the factor of the row's RMS norm.
__device__ __forceinline__ float add_rows(const Vec8* x, const Vec8* y, long long start, int lane,
                                          int eps_bits, Vec8* sum) {
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    if (!exists(v, lane))
      continue;
    const Vec8 a = x[start + v * 32], b = y[start + v * 32];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sum[v].pair[k] = pack(low(a.pair[k]) + low(b.pair[k]), high(a.pair[k]) + high(b.pair[k]));
      const float first = low(sum[v].pair[k]), second = high(sum[v].pair[k]);
      squares += first * first + second * second;
    }
  }
  return rsqrtf(warp_sum(squares) / SIZE + __int_as_float(eps_bits));
}

__device__ __forceinline__ Vec8 scaled(const Vec8& sum, float scale) {
  Vec8 out;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    out.pair[k] = pack(low(sum.pair[k]) * scale, high(sum.pair[k]) * scale);
  return out;
}
#endif

#ifdef ADD_NORM
extern "C" __global__ void add_norm(const Vec8* x, const Vec8* y, Vec8* out, KEPT(Vec8* total)
                                    int rows, int eps_bits) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows)
    return;
  const long long start = (long long)row * (SIZE / 8) + lane;
  Vec8 sum[PER_LANE];
  const float scale = add_rows(x, y, start, lane, eps_bits, sum);
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    if (!exists(v, lane))
      continue;
#if KEEP
    total[start + v * 32] = sum[v];
#endif
    out[start + v * 32] = scaled(sum[v], scale);
  }
}
#endif

#ifdef ADD_NORM_SUM
// The norm, rounded, plus `following`, and the norm where it is kept.
extern "C" __global__ void add_norm_sum(const Vec8* x, const Vec8* y, const Vec8* following,
                                        Vec8* next, KEPT(Vec8* out) int rows, int eps_bits) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows)
    return;
  const long long start = (long long)row * (SIZE / 8) + lane;
  Vec8 sum[PER_LANE], more[PER_LANE];
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v)  // early, so that it is there when the factor is
    if (exists(v, lane))
      more[v] = following[start + v * 32];
  const float scale = add_rows(x, y, start, lane, eps_bits, sum);
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    if (!exists(v, lane))
      continue;
    const Vec8 a = scaled(sum[v], scale), b = more[v];
#if KEEP
    out[start + v * 32] = a;
#endif
#pragma unroll
    for (int k = 0; k < 4; ++k)
      sum[v].pair[k] = pack(low(a.pair[k]) + low(b.pair[k]), high(a.pair[k]) + high(b.pair[k]));
    next[start + v * 32] = sum[v];
  }
}
#endif

#ifdef NORM_BACKWARD
extern "C" __global__ void norm_backward(const Vec8* total, const Vec8* d_out, Vec8* d_total,
                                         int rows, int eps_bits) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows)
    return;
  const long long start = (long long)row * (SIZE / 8) + lane;
  Vec8 s[PER_LANE], d[PER_LANE];
  float squares = 0.f, products = 0.f;
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    if (!exists(v, lane))
      continue;
    s[v] = total[start + v * 32];
    d[v] = d_out[start + v * 32];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float a = low(s[v].pair[k]), b = high(s[v].pair[k]);
      squares += a * a + b * b;
      products += a * low(d[v].pair[k]) + b * high(d[v].pair[k]);
    }
  }
  const float scale = rsqrtf(warp_sum(squares) / SIZE + __int_as_float(eps_bits));
  const float pull = warp_sum(products) / SIZE * scale * scale;
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    if (!exists(v, lane))
      continue;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      d[v].pair[k] = pack(scale * (low(d[v].pair[k]) - low(s[v].pair[k]) * pull),
                          scale * (high(d[v].pair[k]) - high(s[v].pair[k]) * pull));
    d_total[start + v * 32] = d[v];
  }
}
#endif
#endif

#ifdef POSITIONS
// Blocks of 32 column pairs x 8 threads; grid (D / 64, B). `stride` is D / 2, pairs in a row.
constexpr int PER_THREAD = (POSITIONS + 7) / 8;

#ifdef NORM_BACKWARD_POSITIONS
extern "C" __global__ void norm_backward_positions(const unsigned int* total,
                                                   const unsigned int* d_out,
                                                   unsigned int* d_total, int stride, int eps_bits) {
  __shared__ float partial[4][8][32];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const long long start = (long long)blockIdx.y * POSITIONS * stride + blockIdx.x * 32 + lane;
  unsigned int s[PER_THREAD], d[PER_THREAD];
  float squares[2] = {0.f, 0.f}, products[2] = {0.f, 0.f};
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const int t = i * 8 + part;
    s[i] = d[i] = 0;
    if (t < POSITIONS) {
      s[i] = total[start + (long long)t * stride];
      d[i] = d_out[start + (long long)t * stride];
    }
    squares[0] += low(s[i]) * low(s[i]);
    squares[1] += high(s[i]) * high(s[i]);
    products[0] += low(s[i]) * low(d[i]);
    products[1] += high(s[i]) * high(d[i]);
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    partial[k][part][lane] = squares[k];
    partial[2 + k][part][lane] = products[k];
  }
  __syncthreads();
  float scale[2], pull[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float square = 0.f, product = 0.f;
#pragma unroll
    for (int other = 0; other < 8; ++other) {
      square += partial[k][other][lane];
      product += partial[2 + k][other][lane];
    }
    scale[k] = rsqrtf(square / POSITIONS + __int_as_float(eps_bits));
    pull[k] = product / POSITIONS * scale[k] * scale[k];
  }
#pragma unroll
  for (int i = 0; i < PER_THREAD; ++i) {
    const int t = i * 8 + part;
    if (t < POSITIONS)
      d_total[start + (long long)t * stride] =
          pack(scale[0] * (low(d[i]) - low(s[i]) * pull[0]),
               scale[1] * (high(d[i]) - high(s[i]) * pull[1]));
  }
}
#endif
#endif
