// Stable sorts of (key, value) pairs by unsigned keys, and keys for the descending order of scores.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/host_device.h"

namespace cvk {

// Score bits as an unsigned key whose ascending order is the descending order of scores; both zeros are one value.
CVK_HD uint32_t descending_key(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);
  return (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
}
CVK_HD uint64_t descending_key(double score) {
  const uint64_t bits = bit_cast<uint64_t>(score + 0.0);
  return (bits >> 63) != 0 ? bits : ~(bits | (uint64_t{1} << 63));
}

template <class Key>
struct Keyed {
  Key key;
  uint32_t value;
};

// Sorts `entries` by ascending key, stably, byte by byte from the lowest; bytes that all keys share cost nothing.
// Returns the array that holds the result, `entries` or `spare`.
template <class Key>
CVK_HD Keyed<Key>* radix_sort(Keyed<Key>* entries, Keyed<Key>* spare, int64_t count) {
  if (count <= 48) {  // insertion sort
    for (int64_t i = 1; i < count; ++i) {
      const Keyed<Key> entry = entries[i];
      int64_t j = i;
      for (; j > 0 && entries[j - 1].key > entry.key; --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
    return entries;
  }
  Key any_set = 0, all_set = static_cast<Key>(~Key{0});
  for (int64_t i = 0; i < count; ++i) {
    any_set |= entries[i].key;
    all_set &= entries[i].key;
  }
  const Key differs = any_set ^ all_set;
  for (int shift = 0; shift < static_cast<int>(sizeof(Key)) * 8; shift += 8) {
    if (((differs >> shift) & 0xffu) == 0) continue;
    uint32_t begin[256];
    memset(begin, 0, sizeof(begin));
    for (int64_t i = 0; i < count; ++i) ++begin[(entries[i].key >> shift) & 0xffu];
    uint32_t running = 0;
    for (uint32_t& slot : begin) {
      const uint32_t here = slot;
      slot = running;
      running += here;
    }
    for (int64_t i = 0; i < count; ++i) spare[begin[(entries[i].key >> shift) & 0xffu]++] = entries[i];
    Keyed<Key>* swap = entries;
    entries = spare;
    spare = swap;
  }
  return entries;
}

}  // namespace cvk
