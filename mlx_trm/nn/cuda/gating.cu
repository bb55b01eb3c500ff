// What the two halves of a SwiGLU's inner product become, silu(gate) * up or a gate norm of them,
// each with its gradient.
//
// silu(gate) * up: gate and up lie one after the other in blocks of `block`
// numbers: for a layer over the last axis block is its inner size I, over the position axis I * D.
// One thread does 8 numbers; `count` is how many there are of h, block is a multiple of 8.

#ifdef SWIGLU_FORWARD
extern "C" __global__ void swiglu_forward(const Vec8* gate_up, Vec8* h, int block, int count) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count / 8)
    return;
  const int vectors = block / 8;
  const long long outer = i / vectors;
  const Vec8* gate = gate_up + i + outer * vectors;
  const Vec8 g = *gate, u = gate[vectors];
  Vec8 out;
#pragma unroll
  for (int k = 0; k < 4; ++k)
    out.pair[k] = pack(silu_times(low(g.pair[k]), low(u.pair[k])),
                       silu_times(high(g.pair[k]), high(u.pair[k])));
  h[i] = out;
}
#endif

#ifdef SWIGLU_BACKWARD
extern "C" __global__ void swiglu_backward(const Vec8* gate_up, const Vec8* dh, Vec8* d_gate_up,
                                           Vec8* h, int block, int count) {
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count / 8)
    return;
  const int vectors = block / 8;
  const long long at = i + i / vectors * vectors;
  const Vec8 g = gate_up[at], u = gate_up[at + vectors], d = dh[i];
  Vec8 dg, du, out;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float3 a = swiglu_gradients(low(g.pair[k]), low(u.pair[k]), low(d.pair[k]));
    const float3 b = swiglu_gradients(high(g.pair[k]), high(u.pair[k]), high(d.pair[k]));
    dg.pair[k] = pack(a.x, b.x);
    du.pair[k] = pack(a.y, b.y);
    out.pair[k] = pack(a.z, b.z);
  }
  d_gate_up[at] = dg;
  d_gate_up[at + vectors] = du;
  h[i] = out;
}
#endif

// The gate norm: sigmoid(gate) * rms_norm(gate * up) over the last axis, and its gradient. A block
// does a row of SIZE numbers, a multiple of 8, and each of its threads 8 of them, so that every
// array is read or written once. Where HALVES is 1, gate and up are halves of one array's rows, and
// so are their gradients. Over the second-last axis, of INNER numbers: see the end.

// out = share * product * scale, where share = sigmoid(gate) and product = gate * up. Gives the
// gradients of gate and up, and out.
__device__ __forceinline__ float3 gradients(float gate, float up, float d_out, float scale,
                                            float pull) {
  const float share = sigmoid(gate), product = gate * up;
  const float d_product = scale * (d_out * share - product * pull);
  const float d_share = d_out * product * scale;
  return make_float3(d_product * up + d_share * share * (1.f - share), d_product * gate,
                     share * product * scale);
}

#ifdef SIZE
enum { VECTORS = SIZE / 8, WARPS = (VECTORS + 31) / 32, STRIDE = (HALVES + 1) * VECTORS };

__device__ __forceinline__ Vec8 read(const Vec8* from, long long at, bool exists) {
  Vec8 found;
  found.pair[0] = found.pair[1] = found.pair[2] = found.pair[3] = 0;
  if (exists)
    found = from[at];
  return found;
}

// The sum over the threads of a block, the same in all; `partial` has a number for each warp.
__device__ __forceinline__ float block_sum(float x, float* partial) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0)
    partial[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp)
    total += partial[warp];
  return total;
}

#ifdef GATE_NORM_FORWARD
extern "C" __global__ void gate_norm_forward(const Vec8* gate, const Vec8* up, Vec8* out,
                                             int eps_bits) {
  __shared__ float partial[WARPS];
  const long long row = blockIdx.x, lane = threadIdx.x;
  const bool exists = lane < VECTORS;
  const Vec8 g = read(gate, row * STRIDE + lane, exists);
  Vec8 u = read(HALVES ? gate + VECTORS : up, row * STRIDE + lane, exists);
  float squares = 0.f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float a = low(g.pair[k]) * low(u.pair[k]), b = high(g.pair[k]) * high(u.pair[k]);
    squares += a * a + b * b;
  }
  const float scale = rsqrtf(block_sum(squares, partial) / SIZE + __int_as_float(eps_bits));
#pragma unroll
  for (int k = 0; k < 4; ++k)
    u.pair[k] = pack(silu(low(g.pair[k])) * low(u.pair[k]) * scale,
                     silu(high(g.pair[k])) * high(u.pair[k]) * scale);
  if (exists)
    out[row * VECTORS + lane] = u;
}
#endif

#ifdef GATE_NORM_BACKWARD
extern "C" __global__ void gate_norm_backward(const Vec8* gate, const Vec8* up, const Vec8* d_out,
                                              Vec8* d_gate, Vec8* d_up, Vec8* out, int eps_bits,
                                              int give_out) {
  __shared__ float partial[2 * WARPS];
  const long long row = blockIdx.x, lane = threadIdx.x;
  const bool exists = lane < VECTORS;
  Vec8 g = read(gate, row * STRIDE + lane, exists);
  Vec8 u = read(HALVES ? gate + VECTORS : up, row * STRIDE + lane, exists);
  Vec8 d = read(d_out, row * VECTORS + lane, exists);
  float squares = 0.f, products = 0.f;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float a = low(g.pair[k]), b = high(g.pair[k]);
    const float first = a * low(u.pair[k]), second = b * high(u.pair[k]);
    squares += first * first + second * second;
    products += first * low(d.pair[k]) * sigmoid(a) + second * high(d.pair[k]) * sigmoid(b);
  }
  const float scale = rsqrtf(block_sum(squares, partial) / SIZE + __int_as_float(eps_bits));
  const float pull = block_sum(products, partial + WARPS) / SIZE * scale * scale;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float3 first = gradients(low(g.pair[k]), low(u.pair[k]), low(d.pair[k]), scale, pull);
    const float3 second = gradients(high(g.pair[k]), high(u.pair[k]), high(d.pair[k]), scale, pull);
    g.pair[k] = pack(first.x, second.x);
    u.pair[k] = pack(first.y, second.y);
    d.pair[k] = pack(first.z, second.z);
  }
  if (exists) {
    d_gate[row * STRIDE + lane] = g;
    (HALVES ? d_gate + VECTORS : d_up)[row * STRIDE + lane] = u;
    if (give_out)
      out[row * VECTORS + lane] = d;
  }
}
#endif
#endif

#ifdef INNER
// Gate and up are halves of (B, 2 * INNER, D). Blocks of 32 column pairs x 8 threads, which share
// the INNER rows and go through them twice, the second time from a cache; grid (D / 64, B).
// `stride` is D / 2, pairs in a row.
struct Columns {
  long long gate, up, out; // where this thread's first pair is
  int step;                // from one of its rows to the next
};
__device__ __forceinline__ Columns columns_of(int stride) {
  const int part = threadIdx.x / 32;
  const long long column = (long long)part * stride + blockIdx.x * 32 + threadIdx.x % 32;
  const long long gate = (long long)blockIdx.y * 2 * INNER * stride + column;
  const Columns found = {gate, gate + (long long)INNER * stride,
                         (long long)blockIdx.y * INNER * stride + column, 8 * stride};
  return found;
}

// The sum over the 8 threads of a column pair, the same in all of them.
__device__ __forceinline__ float2 column_sum(float2 x, float2 (*partial)[32]) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  partial[part][lane] = x;
  __syncthreads();
  float2 total = make_float2(0.f, 0.f);
#pragma unroll
  for (int other = 0; other < 8; ++other) {
    total.x += partial[other][lane].x;
    total.y += partial[other][lane].y;
  }
  return total;
}

__device__ __forceinline__ float scale_of(float square, int eps_bits) {
  return rsqrtf(square / INNER + __int_as_float(eps_bits));
}

#ifdef GATE_NORM_POSITIONS
extern "C" __global__ void gate_norm_positions(const unsigned int* gate_up, unsigned int* out,
                                               int stride, int eps_bits) {
  __shared__ float2 partial[8][32];
  const Columns at = columns_of(stride);
  float2 squares = make_float2(0.f, 0.f);
#pragma unroll 4
  for (int i = 0; i < INNER / 8; ++i) {
    const unsigned int g = gate_up[at.gate + (long long)i * at.step];
    const unsigned int u = gate_up[at.up + (long long)i * at.step];
    const float a = low(g) * low(u), b = high(g) * high(u);
    squares.x += a * a;
    squares.y += b * b;
  }
  squares = column_sum(squares, partial);
  const float first = scale_of(squares.x, eps_bits), second = scale_of(squares.y, eps_bits);
#pragma unroll 4
  for (int i = 0; i < INNER / 8; ++i) {
    const unsigned int g = gate_up[at.gate + (long long)i * at.step];
    const unsigned int u = gate_up[at.up + (long long)i * at.step];
    out[at.out + (long long)i * at.step] =
        pack(silu(low(g)) * low(u) * first, silu(high(g)) * high(u) * second);
  }
}
#endif

#ifdef GATE_NORM_POSITIONS_BACKWARD
extern "C" __global__ void gate_norm_positions_backward(const unsigned int* gate_up,
                                                        const unsigned int* d_out,
                                                        unsigned int* d_gate_up, unsigned int* out,
                                                        int stride, int eps_bits) {
  __shared__ float2 partial[2][8][32];
  const Columns at = columns_of(stride);
  float2 squares = make_float2(0.f, 0.f), products = make_float2(0.f, 0.f);
#pragma unroll 4
  for (int i = 0; i < INNER / 8; ++i) {
    const unsigned int g = gate_up[at.gate + (long long)i * at.step];
    const unsigned int u = gate_up[at.up + (long long)i * at.step];
    const unsigned int d = d_out[at.out + (long long)i * at.step];
    const float a = low(g) * low(u), b = high(g) * high(u);
    squares.x += a * a;
    squares.y += b * b;
    products.x += a * low(d) * sigmoid(low(g));
    products.y += b * high(d) * sigmoid(high(g));
  }
  squares = column_sum(squares, partial[0]);
  products = column_sum(products, partial[1]);
  const float2 scale = make_float2(scale_of(squares.x, eps_bits), scale_of(squares.y, eps_bits));
  const float2 pull =
      make_float2(products.x / INNER * scale.x * scale.x, products.y / INNER * scale.y * scale.y);
#pragma unroll 4
  for (int i = 0; i < INNER / 8; ++i) {
    const unsigned int g = gate_up[at.gate + (long long)i * at.step];
    const unsigned int u = gate_up[at.up + (long long)i * at.step];
    const unsigned int d = d_out[at.out + (long long)i * at.step];
    const float3 first = gradients(low(g), low(u), low(d), scale.x, pull.x);
    const float3 second = gradients(high(g), high(u), high(d), scale.y, pull.y);
    d_gate_up[at.gate + (long long)i * at.step] = pack(first.x, second.x);
    d_gate_up[at.up + (long long)i * at.step] = pack(first.y, second.y);
    out[at.out + (long long)i * at.step] = pack(first.z, second.z);
  }
}
#endif
#endif
