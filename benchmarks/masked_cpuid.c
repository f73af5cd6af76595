/* Answers the cpuid instructions that benchmarks/masked_cpuid.py made illegal, without AVX512, VNNI
   and what else is above AVX2. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

static void answer(int signal_number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)r[REG_RIP];
  unsigned a, b, c, d, leaf = r[REG_RAX], part = r[REG_RCX];
  if (at[0] != 0x0f || at[1] != 0x0b) _exit(99);
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {
    b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31); /* AVX512 */
    c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);             /* and its VNNI */
    d &= ~(1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);                      /* AMX */
  }
  if (leaf == 7 && part == 1) a = d = 0; /* AVX-VNNI and its successors */
  r[REG_RAX] = a;
  r[REG_RBX] = b;
  r[REG_RCX] = c;
  r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, 0);
}
