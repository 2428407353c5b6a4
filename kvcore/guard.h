/* Reading mapped files without dying of it.

   A page of a mapping whose file was cut, or whose disk cannot be read, raises SIGBUS. Every access to mapped bytes goes
   through one of the functions below: inside, a SIGBUS ends the function with -1; outside, it goes to whoever handled
   it before. The jump buffer is per thread, so worker threads may read too. Each module that includes this
   file has a state of its own; guard.pyx alone installs and uses the guards. */
#ifndef KV_GUARD_H
#define KV_GUARD_H

#include <signal.h>
#include <stdint.h>
#include <string.h>

/* Where a guard goes on after a SIGBUS. The compiler's own jump saves three words in line; sigsetjmp is a call that saves
   every register: a quarter of the instructions of a guarded copy of 136 bytes (callgrind). */
#if defined(__clang__) && !defined(__x86_64__)
#include <setjmp.h>
typedef sigjmp_buf kv_jump;
#define KV_MARK(jump) sigsetjmp(jump, 0)
#define KV_JUMP(jump) siglongjmp(jump, 1)
#else
typedef void *kv_jump[5];
#define KV_MARK(jump) __builtin_setjmp(jump)
#define KV_JUMP(jump) __builtin_longjmp(jump, 1)
#endif

static __thread kv_jump *kv_guard_here;
static struct sigaction kv_guard_before;

static inline void kv_guard_handler(int signo, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    if (kv_guard_here != NULL)
        KV_JUMP(*kv_guard_here);
    /* Not ours: put the earlier handler back; returning runs the faulting instruction again, for it to see. */
    sigaction(signo, &kv_guard_before, NULL);
}

/* Once per process. SA_NODEFER: the jump leaves the handler without restoring a signal mask (to save one is a system
   call), so SIGBUS must not be blocked while it runs. */
static inline int kv_guard_install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = kv_guard_handler;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &kv_guard_before);
}

/* Copy n bytes from or to a mapping. 0, or -1 when a page cannot be reached. */
static inline int kv_guard_copy(void *dst, const void *src, size_t n)
{
    kv_jump here;
    if (KV_MARK(here) != 0) {
        kv_guard_here = NULL;
        return -1;
    }
    kv_guard_here = &here;
    /* The barriers keep the compiler from moving the copy out of the guarded stretch. */
    __asm__ volatile("" ::: "memory");
    memcpy(dst, src, n);
    __asm__ volatile("" ::: "memory");
    kv_guard_here = NULL;
    return 0;
}

/* Does the record of `size` bytes hold this key? Looks at its key length (u24 at 16), the flag that says where the key
   stands (0x02 at 19) and the key alone. */
static inline int kv_key_equal(const uint8_t *record, size_t size, const void *key, size_t n)
{
    size_t start = record[19] & 0x02 ? 28 : 20;
    return (size_t)(record[16] | record[17] << 8 | record[18] << 16) == n && start + n <= size &&
           memcmp(record + start, key, n) == 0;
}

/* The same for a mapped record: 1, 0, or -1 when a page cannot be read. */
static inline int kv_guard_key_equal(const uint8_t *record, size_t size, const void *key, size_t n)
{
    kv_jump here;
    volatile int equal;
    if (KV_MARK(here) != 0) {
        kv_guard_here = NULL;
        return -1;
    }
    kv_guard_here = &here;
    __asm__ volatile("" ::: "memory");
    equal = kv_key_equal(record, size, key, n);
    __asm__ volatile("" ::: "memory");
    kv_guard_here = NULL;
    return equal;
}

/* Compare a mapped key of m bytes with another of n bytes, shorter first when one begins the other. *order is set; 0, or
   -1 when a page cannot be read. */
static inline int kv_guard_compare(const void *mapped, size_t m, const void *key, size_t n, int *order)
{
    kv_jump here;
    size_t shared = m < n ? m : n;
    volatile int result = 0;
    if (KV_MARK(here) != 0) {
        kv_guard_here = NULL;
        return -1;
    }
    kv_guard_here = &here;
    __asm__ volatile("" ::: "memory");
    if (shared > 0) /* an empty key may be a null pointer, which memcmp must not see */
        result = memcmp(mapped, key, shared);
    __asm__ volatile("" ::: "memory");
    kv_guard_here = NULL;
    *order = result != 0 ? result : (m > n) - (m < n);
    return 0;
}

#endif
