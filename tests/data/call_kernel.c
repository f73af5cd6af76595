// Calls a kernel that TVM compiled, without TVM's runtime: tensors from standard input, the last one
// to standard output. A tensor is int32 code, bits, rank; int64 sizes; its bytes.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } Type;
typedef struct {
  void *data; Device device; int32_t rank; Type type; int64_t *shape, *strides; uint64_t offset;
} Tensor;
typedef struct { int32_t index; uint32_t padding; void *value; } Any;
typedef struct { void *sync; int32_t tasks; } Group;
typedef int (*Task)(int, Group *, void *);

extern int __tvm_ffi_main(void *, Any *, int32_t, Any *);

static int launch(Task task, void *data, int tasks) {
  Group group = {NULL, tasks ? tasks : 2};
  for (int i = 0; i < group.tasks; i++)
    if (task(i, &group, data)) return -1;
  return 0;
}

static void *allocate(int type, int id, uint64_t bytes, int code, int bits) {
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static int release(int type, int id, void *memory) { free(memory); return 0; }

// What the runtime fills in where it loads a library.
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void *, int);
__attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
__attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; i++) fputs(parts[i] ? parts[i] : "", stderr);
  fputs("\n", stderr);
}

static void get(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(3);
}

int main(void) {
  __TVMBackendParallelLaunch = launch;
  __TVMBackendAllocWorkspace = allocate;
  __TVMBackendFreeWorkspace = release;
  int32_t count;
  get(&count, sizeof count);
  Any *arguments = calloc(count, sizeof *arguments), result = {0};
  size_t bytes = 0;
  Tensor *tensor = NULL;
  for (int i = 0; i < count; i++) {
    int32_t head[3];
    get(head, sizeof head);
    tensor = calloc(1, sizeof *tensor);
    *tensor = (Tensor){.device = {1, 0}, .rank = head[2], .type = {head[0], head[1], 1}};
    tensor->shape = calloc(head[2] + 1, sizeof(int64_t));
    get(tensor->shape, head[2] * sizeof(int64_t));
    bytes = head[1] / 8;
    for (int axis = 0; axis < head[2]; axis++) bytes *= tensor->shape[axis];
    tensor->data = allocate(1, 0, bytes ? bytes : 1, 0, 8);
    get(tensor->data, bytes);
    arguments[i] = (Any){7, 0, tensor};  // kTVMFFIDLTensorPtr
  }
  if (__tvm_ffi_main(NULL, arguments, count, &result)) return 1;
  fwrite(tensor->data, 1, bytes, stdout);
  return 0;
}
