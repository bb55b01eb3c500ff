// Products by Hopper's tensor cores (wgmma). Four warps start them together, the left factor and the
// result in their registers, the right factor in shared memory, and go on while they are computed.

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until no more than LEFT groups of products, each from begin to end, are being computed.
template <int LEFT> __device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// What was written to shared memory before can be read by products, which take another path.
__device__ __forceinline__ void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Nothing that reads or writes these numbers may be moved over this line.
template <int COUNT> __device__ __forceinline__ void pin(float* d) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i)
    asm volatile("" : "+f"(d[i])::"memory");
}

// The descriptor of a tile in shared memory: 8 rows are 1,024 bytes, swizzled over 128. Its lower half
// counts addresses by 16 bytes, so that places in the tile are added to it.
__device__ __forceinline__ unsigned int lower_half(const bf16* tile) {
  return shared_address(tile) >> 4 | 1u << 16;
}
__device__ __forceinline__ unsigned long long descriptor(unsigned int lower) {
  return lower | 64ull << 32 | 1ull << 62;
}
