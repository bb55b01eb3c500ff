// sigmoid(gate) * rms_norm(gate * up) over the last axis, and its gradient: a warp a row of SIZE
// numbers, a multiple of 8, which it holds in registers, so that each array is read or written once.
// Where HALVES is 1, gate and up are halves of the rows of one array, and so are their gradients.

constexpr int VECTORS = SIZE / 8;                // of 8 numbers in a row
constexpr int PER_LANE = (VECTORS + 31) / 32;    // that a lane holds; the last may not exist
constexpr int STRIDE = (HALVES + 1) * VECTORS;   // from row to row of gate, and of up

__device__ __forceinline__ Vec8 nothing() {
  Vec8 zero;
  zero.pair[0] = zero.pair[1] = zero.pair[2] = zero.pair[3] = 0;
  return zero;
}

#ifdef GATE_NORM_FORWARD
extern "C" __global__ void gate_norm_forward(const Vec8* gate, const Vec8* up, Vec8* out, int rows,
                                             int eps_bits) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows)
    return;
  const long long start = (long long)row * VECTORS, from = (long long)row * STRIDE;
  if (HALVES)
    up = gate + VECTORS;
  Vec8 g[PER_LANE], u[PER_LANE];
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    const int at = v * 32 + lane;
    g[v] = u[v] = nothing();
    if (at < VECTORS) {
      g[v] = gate[from + at];
      u[v] = up[from + at];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float a = low(g[v].pair[k]) * low(u[v].pair[k]);
      const float b = high(g[v].pair[k]) * high(u[v].pair[k]);
      squares += a * a + b * b;
    }
  }
  const float scale = rsqrtf(warp_sum(squares) / SIZE + __int_as_float(eps_bits));
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    const int at = v * 32 + lane;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float a = low(g[v].pair[k]), b = high(g[v].pair[k]);
      u[v].pair[k] = pack(silu(a) * low(u[v].pair[k]) * scale, silu(b) * high(u[v].pair[k]) * scale);
    }
    if (at < VECTORS)
      out[start + at] = u[v];
  }
}
#endif

#ifdef GATE_NORM_BACKWARD
// out = share * product * scale, where share = sigmoid(gate), product = gate * up.
__device__ __forceinline__ float2 gradients(float gate, float up, float d_out, float scale,
                                            float pull) {
  const float share = sigmoid(gate), product = gate * up;
  const float d_product = scale * (d_out * share - product * pull);
  const float d_share = d_out * product * scale;
  return make_float2(d_product * up + d_share * share * (1.f - share), d_product * gate);
}

extern "C" __global__ void gate_norm_backward(const Vec8* gate, const Vec8* up, const Vec8* d_out,
                                              Vec8* d_gate, Vec8* d_up, Vec8* out, int rows,
                                              int eps_bits, int give_out) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows)
    return;
  const long long start = (long long)row * VECTORS, from = (long long)row * STRIDE;
  if (HALVES)
    up = gate + VECTORS, d_up = d_gate + VECTORS;
  Vec8 g[PER_LANE], u[PER_LANE], d[PER_LANE];
  float squares = 0.f, products = 0.f;
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    const int at = v * 32 + lane;
    g[v] = u[v] = d[v] = nothing();
    if (at < VECTORS) {
      g[v] = gate[from + at];
      u[v] = up[from + at];
      d[v] = d_out[start + at];
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float a = low(g[v].pair[k]), b = high(g[v].pair[k]);
      const float first = a * low(u[v].pair[k]), second = b * high(u[v].pair[k]);
      squares += first * first + second * second;
      products += first * low(d[v].pair[k]) * sigmoid(a) + second * high(d[v].pair[k]) * sigmoid(b);
    }
  }
  const float scale = rsqrtf(warp_sum(squares) / SIZE + __int_as_float(eps_bits));
  const float pull = warp_sum(products) / SIZE * scale * scale;
#pragma unroll
  for (int v = 0; v < PER_LANE; ++v) {
    const int at = v * 32 + lane;
    Vec8 again;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float a = low(g[v].pair[k]), b = high(g[v].pair[k]);
      const float c = low(u[v].pair[k]), e = high(u[v].pair[k]);
      again.pair[k] = pack(silu(a) * c * scale, silu(b) * e * scale);
      const float2 first = gradients(a, c, low(d[v].pair[k]), scale, pull);
      const float2 second = gradients(b, e, high(d[v].pair[k]), scale, pull);
      g[v].pair[k] = pack(first.x, second.x);
      u[v].pair[k] = pack(first.y, second.y);
    }
    if (at < VECTORS) {
      d_gate[from + at] = g[v];
      d_up[from + at] = u[v];
      if (give_out)
        out[start + at] = again;
    }
  }
}
#endif
