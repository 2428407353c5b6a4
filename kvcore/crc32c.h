/* CRC-32C of short buffers by the processor's own instruction.

   Reaching the crc32c package costs a call through Python's objects: about 65 ns and 1,300 instructions, two thirds of
   a whole get of 100 bytes (docs/design.md). So short buffers are done here; long ones, where it interleaves three
   streams, and processors without the instruction are the package's. */
#ifndef KV_CRC32C_H
#define KV_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KV_CRC32C_SHORT 1024 /* bytes up to which one stream is the faster way: measured */

#if defined(__x86_64__)

static inline int kv_crc32c_here(void)
{
    return __builtin_cpu_supports("sse4.2") != 0;
}

__attribute__((target("sse4.2"))) static inline uint32_t kv_crc32c(const uint8_t *data, size_t n, uint32_t seed)
{
    uint64_t crc = ~seed, word;
    for (; n >= 8; n -= 8, data += 8) {
        memcpy(&word, data, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    if (n & 4) {
        memcpy(&word, data, 4);
        crc = __builtin_ia32_crc32si((uint32_t)crc, (uint32_t)word);
        data += 4;
    }
    for (n &= 3; n > 0; n--, data++)
        crc = __builtin_ia32_crc32qi((uint32_t)crc, *data);
    return ~(uint32_t)crc;
}

#else

static inline int kv_crc32c_here(void)
{
    return 0;
}

static inline uint32_t kv_crc32c(const uint8_t *data, size_t n, uint32_t seed)
{
    (void)data;
    (void)n;
    return seed;
}

#endif
#endif
