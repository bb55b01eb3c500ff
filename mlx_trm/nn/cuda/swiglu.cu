// silu(gate) * up and its gradient. Gate and up lie one after the other in blocks of `block`
// numbers: for a layer over the last axis block is its inner size I, over the position axis I * D.
// One thread does 8 numbers; `count` is how many there are of h, block is a multiple of 8.

__device__ __forceinline__ float silu_times(float gate, float up) {
  return rounded(silu(gate)) * up;
}

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

__device__ __forceinline__ float3 gradients(float gate, float up, float dh) {
  const float share = sigmoid(gate);
  const float gated = rounded(gate * share);
  const float d_gated = rounded(dh * up);
  return make_float3(d_gated * (share * (1.f + gate * (1.f - share))), dh * gated, gated * up);
}

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
    const float3 a = gradients(low(g.pair[k]), low(u.pair[k]), low(d.pair[k]));
    const float3 b = gradients(high(g.pair[k]), high(u.pair[k]), high(d.pair[k]));
    dg.pair[k] = pack(a.x, b.x);
    du.pair[k] = pack(a.y, b.y);
    out.pair[k] = pack(a.z, b.z);
  }
  d_gate_up[at] = dg;
  d_gate_up[at + vectors] = du;
  h[i] = out;
}
#endif
