// Products by Hopper's tensor cores (wgmma). Four warps start them together, the left factor and
// the result in their registers, the right factor in shared memory, and go on while they are
// computed.

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

// Results that a product adds to.
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define EIGHT(i) FOUR(i), FOUR(i + 4)

// d (64 x 64 of four warps) += a (64 x 16) * b, or = where `add` is 0. b is 16 x 64 in shared
// memory; what lies together there are its columns, or with ACROSS 1 its rows.
template <int ACROSS = 0>
__device__ __forceinline__ void multiply64(float* d, const unsigned int* a, unsigned long long b,
                                           int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
               : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(ACROSS)
               : "memory");
}

// The same of 64 x 32 with both factors in shared memory, where what lies together are a's columns
// and b's rows.
__device__ __forceinline__ void multiply32_across(float* d, unsigned long long a,
                                                  unsigned long long b, int add) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
               "%16, %17, p, 1, 1, 1, 1;\n}\n"
               : EIGHT(0), EIGHT(8)
               : "l"(a), "l"(b), "r"(add)
               : "memory");
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

// The descriptor of a tile in shared memory: 8 rows are 1,024 bytes, swizzled over 128. Its lower
// half counts addresses by 16 bytes, so that places in the tile are added to it.
__device__ __forceinline__ unsigned int lower_half(const bf16* tile) {
  return shared_address(tile) >> 4 | 1u << 16;
}
__device__ __forceinline__ unsigned long long descriptor(unsigned int lower) {
  return lower | 64ull << 32 | 1ull << 62;
}

// The same of rows that are not swizzled: pieces of 8 numbers, all ROWS' first ones, then their
// second ones and so on. It counts pieces, too: 16 numbers further are 2 * ROWS.
__device__ __forceinline__ unsigned long long plain_descriptor(const bf16* tile,
                                                               unsigned long long rows) {
  return (unsigned long long)(shared_address(tile) >> 4) | rows << 16 | 8ull << 32;
}

// Copies into shared memory that no thread waits for: a barrier there says when their bytes have
// come.
__device__ __forceinline__ void init_barrier(unsigned int barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void expect_bytes(unsigned int barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_bytes(bf16* to, const bf16* from, int bytes,
                                           unsigned int barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void await_bytes(unsigned int barrier, int parity) {
  asm volatile("{\n.reg .pred p;\nagain:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               "@!p bra again;\n}\n" ::"r"(barrier),
               "r"(parity)
               : "memory");
}

// Start to copy this thread's 16 bytes of 64 rows of 64 numbers, of 256 threads: `from` is in row
// first + threadIdx.x / 8 of LENGTH, the other 32 further. Behind the last row it is that one again.
template <int LENGTH, int ROW_STEP>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, int first) {
  if (first + 64 <= LENGTH) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      copy16(to + i * 32 * 64, from + i * 32 * ROW_STEP);
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int past = first + (int)threadIdx.x / 8 + i * 32 - (LENGTH - 1);
      copy16(to + i * 32 * 64, from + (i * 32 - (past > 0 ? past : 0)) * ROW_STEP);
    }
  }
}
