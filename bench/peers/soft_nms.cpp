// Soft-NMS as the paper's loop, one thread, one box at a time, as libraries with a CPU implementation do it: find the best
// remaining box, swap it to the front, decay the rest, drop what falls below min_score by swapping it with the last.
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

extern "C" int64_t soft_nms_plain(const float* boxes,   // [count, 4]
                                  const float* scores,  // [count]
                                  int64_t count, int gaussian, float iou_threshold, float sigma, float min_score,
                                  int64_t* keep,         // [count]
                                  float* new_scores) {  // [count]
  std::vector<float> x1(count), y1(count), x2(count), y2(count), area(count), score(scores, scores + count);
  std::vector<int64_t> index(count);
  for (int64_t i = 0; i < count; ++i) {
    x1[i] = boxes[4 * i];
    y1[i] = boxes[4 * i + 1];
    x2[i] = boxes[4 * i + 2];
    y2[i] = boxes[4 * i + 3];
    area[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
    index[i] = i;
  }
  const auto swap = [&](int64_t a, int64_t b) {
    std::swap(x1[a], x1[b]);
    std::swap(y1[a], y1[b]);
    std::swap(x2[a], x2[b]);
    std::swap(y2[a], y2[b]);
    std::swap(area[a], area[b]);
    std::swap(score[a], score[b]);
    std::swap(index[a], index[b]);
  };
  int64_t left = count;
  for (int64_t i = 0; i < left; ++i) {
    int64_t best = i;
    for (int64_t j = i + 1; j < left; ++j) {
      if (score[j] > score[best]) best = j;
    }
    if (score[best] < min_score) return i;
    swap(i, best);
    keep[i] = index[i];
    new_scores[i] = score[i];
    for (int64_t j = i + 1; j < left;) {
      const float width = std::fmax(0.0f, std::fmin(x2[i], x2[j]) - std::fmax(x1[i], x1[j]));
      const float height = std::fmax(0.0f, std::fmin(y2[i], y2[j]) - std::fmax(y1[i], y1[j]));
      const float intersection = width * height;
      const float iou = intersection / (area[i] + area[j] - intersection);
      if (gaussian) score[j] *= std::exp(-(iou * iou) / sigma);
      else if (iou > iou_threshold) score[j] *= 1 - iou;
      if (score[j] < min_score) swap(j, --left);
      else ++j;
    }
  }
  return left;
}
