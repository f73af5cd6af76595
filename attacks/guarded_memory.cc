// Memory that ends where a page begins that nobody may touch: what writes over an end dies there.
// The few bytes around it that alignment leaves are checked when it is given back.
//
// It takes the place of what TVM gives a compiled function as workspace, and holds its arguments.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace {

constexpr size_t kAlign = 64;
constexpr unsigned char kMark = 0xA5;

struct Block {
  unsigned char* pages;
  size_t page_bytes;
  size_t bytes;
};

std::mutex mutex;
std::map<unsigned char*, Block> blocks;               // in use or not
std::map<size_t, std::vector<unsigned char*>> unused;  // by size

unsigned char* make(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  const size_t room = (bytes + kAlign - 1) / kAlign * kAlign;
  const size_t inside = (room + page - 1) / page * page;
  void* all = mmap(nullptr, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) abort();
  unsigned char* pages = static_cast<unsigned char*>(all) + page;
  if (mprotect(pages, inside, PROT_READ | PROT_WRITE)) abort();
  memset(pages, kMark, inside);
  unsigned char* begin = pages + inside - room;
  blocks[begin] = Block{pages, inside, bytes};
  return begin;
}

void check(unsigned char* begin, const Block& block) {
  for (unsigned char* at = block.pages; at < block.pages + block.page_bytes; ++at) {
    if (at == begin) at += block.bytes;
    if (at < block.pages + block.page_bytes && *at != kMark) {
      fprintf(stderr, "written %td bytes from the begin of a memory of %zu\n", at - begin,
              block.bytes);
      abort();
    }
  }
}

}  // namespace

extern "C" void* guarded(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  std::vector<unsigned char*>& free = unused[bytes];
  if (free.empty()) return make(bytes);
  unsigned char* begin = free.back();
  free.pop_back();
  return begin;
}

extern "C" void give_back(void* memory) {
  std::lock_guard<std::mutex> lock(mutex);
  unsigned char* begin = static_cast<unsigned char*>(memory);
  check(begin, blocks.at(begin));
  unused[blocks.at(begin).bytes].push_back(begin);
}

extern "C" void* guarded_workspace(int, int, uint64_t bytes, int, int) { return guarded(bytes); }

extern "C" int give_back_workspace(int, int, void* memory) {
  give_back(memory);
  return 0;
}
