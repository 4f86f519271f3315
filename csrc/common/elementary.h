// exp, log, pow, atan, erfc, sin and cos in plain arithmetic: one rounding per operation and no library call, so the result is the
// same bits on every instruction set and on CUDA, and a scalar equals a lane of a vector. V is float, double or a vector of
// them (simd.h). Errors are a few units in the last place; arguments are those of overlaps and their weights, see each
// function.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/dtype.h"
#include "common/host_device.h"
#include "common/numeric.h"

namespace cvk {

// Element type of V, and the unsigned integers of its width in the same shape; simd.h adds the vectors.
template <class V>
struct LanesOf {
  using Element = V;
  using Bits = std::conditional_t<sizeof(V) == 4, uint32_t, uint64_t>;
};

template <class V>
CVK_HD V elementary_constant(double value) {
  return static_cast<typename LanesOf<V>::Element>(value) - V{};
}

// 1/1 + x/1! + ... by Horner's rule; `term` counts down to 0.
template <int terms, int term = 0>
struct ExponentialSeries {
  template <class V>
  static CVK_HD V sum(V x) {
    if constexpr (term == terms) {
      return elementary_constant<V>(1);
    } else {
      return x * elementary_constant<V>(1.0 / (term + 1)) * ExponentialSeries<terms, term + 1>::sum(x) +
             elementary_constant<V>(1);
    }
  }
};

// 1 + x/3 + x^2/5 + ...
template <int terms, int term = 0>
struct OddSeries {
  template <class V>
  static CVK_HD V sum(V x) {
    const V own = elementary_constant<V>(1.0 / (2 * term + 1));
    if constexpr (term == terms) {
      return own;
    } else {
      return x * OddSeries<terms, term + 1>::sum(x) + own;
    }
  }
};

// e^x for x <= 0; 0 below -87 (-708 for double); NaN is not an argument.
template <class V>
CVK_HD V exp_of_negative(V x) {
  using Element = typename LanesOf<V>::Element;
  using Bits = typename LanesOf<V>::Bits;
  constexpr bool kSingle = sizeof(Element) == 4;
  const V least = elementary_constant<V>(kSingle ? -87.0 : -708.0);
  const V inside = x > least ? x : least;
  // Adding 1.5 * 2^mantissa rounds to a whole number n and leaves it in the low bits. n * (first part of log 2) is exact.
  const V magic = elementary_constant<V>(kSingle ? 12582912.0 : 6755399441055744.0);
  const V shifted = inside * elementary_constant<V>(1.4426950408889634) + magic;
  const V n = shifted - magic;
  const V rest = inside - n * elementary_constant<V>(kSingle ? 0.693359375 : 6.93147180369123816490e-01) -
                 n * elementary_constant<V>(kSingle ? -2.12194440054690583e-4 : 1.90821492927058770002e-10);
  const Bits power = (bit_cast<Bits>(shifted) << (kSingle ? 23 : 52)) + bit_cast<Bits>(elementary_constant<V>(1));
  const V result = ExponentialSeries < kSingle ? 7 : 13 > ::sum(rest) * bit_cast<V>(power);
  return x > least ? result : V{};
}

// log x for a normal x > 0.
template <class V>
CVK_HD V log_of_positive(V x) {
  using Element = typename LanesOf<V>::Element;
  using Bits = typename LanesOf<V>::Bits;
  constexpr bool kSingle = sizeof(Element) == 4;
  constexpr int kMantissa = kSingle ? 23 : 52;
  const Bits bits = bit_cast<Bits>(x), one = bit_cast<Bits>(elementary_constant<V>(1));
  const Bits mantissa_mask = ((Bits{} + 1) << kMantissa) - 1;
  const V fraction = bit_cast<V>((bits & mantissa_mask) | one);  // [1, 2)
  const V large = elementary_constant<V>(kSingle ? 8388608.0 : 4503599627370496.0);
  const V biased = bit_cast<V>((bits >> kMantissa) | bit_cast<Bits>(large)) - large;
  const V exponent = biased - elementary_constant<V>(kSingle ? 127 : 1023);
  const auto high = fraction > elementary_constant<V>(1.4142135623730951);
  const V m = high ? fraction * elementary_constant<V>(0.5) : fraction;
  const V e = high ? exponent + elementary_constant<V>(1) : exponent;
  const V s = (m - elementary_constant<V>(1)) / (m + elementary_constant<V>(1));
  const V series = s * elementary_constant<V>(2) * OddSeries < kSingle ? 4 : 11 > ::sum(s * s);
  return e * elementary_constant<V>(0.6931471805599453) + series;
}

// x^y for 0 <= x <= 1 and y > 0. From 1 on x itself, which is 1 but for rounding and overflow; NaN for NaN.
template <class V>
CVK_HD V pow_of_fraction(V x, typename LanesOf<V>::Element y) {
  using Element = typename LanesOf<V>::Element;
  const V least = elementary_constant<V>(sizeof(Element) == 4 ? 1.1754943508222875e-38 : 2.2250738585072014e-308);
  const V one = elementary_constant<V>(1);
  const V inside = x > least ? (x < one ? x : one) : least;
  const V result = exp_of_negative(log_of_positive(inside) * y);
  return x > least ? (x < one ? result : x) : x * V{};
}

// atan x for x >= 0.
template <class V>
CVK_HD V atan_of_positive(V x) {
  using Element = typename LanesOf<V>::Element;
  const V one = elementary_constant<V>(1);
  const auto inverted = x > one;
  const V folded = inverted ? one / x : x;  // [0, 1]
  const auto outer = folded > elementary_constant<V>(0.41421356237309503);
  const V t = outer ? (folded - one) / (folded + one) : folded;  // |t| <= tan(pi / 8)
  const V near = t * OddSeries < sizeof(Element) == 4 ? 9 : 21 > ::sum(V{} - t * t);
  const V whole = outer ? near + elementary_constant<V>(0.7853981633974483) : near;
  return inverted ? elementary_constant<V>(1.5707963267948966) - whole : whole;
}

// Coefficients of erfc's polynomial, from the highest power down.
template <bool single>
struct ErfcPolynomial;
template <>
struct ErfcPolynomial<true> {
  static constexpr int kDegree = 10;
  static constexpr double coefficient(int i) {
    constexpr double kAll[] = {-0.000278265699915870852, -0.00080095178770044158, 0.00199252101878068044,
                               0.00257998426392572204,   -0.023789117811254486,   0.0682936671224241505,
                               -0.119272827415994339,    0.129646537599027268,    -0.0475622721069927863,
                               -0.135621141900107587,    1.25300805776640919};
    return kAll[i];
  }
};
template <>
struct ErfcPolynomial<false> {
  static constexpr int kDegree = 22;
  static constexpr double coefficient(int i) {
    constexpr double kAll[] = {
        -2.33770631252267885e-9, -6.59347210973700063e-10, 3.28586224491364486e-8, 1.54475202102414712e-8,
        -2.52962344394385087e-7, -4.76001659996885813e-8,  1.74865855244299229e-6, -9.80455114636572299e-7,
        -1.14433867156477346e-5, 2.23873333517546188e-5,   5.16490807228506104e-5, -0.000290154969808545248,
        0.000293713623374060857, 0.00175562601493282899,   -0.0097465795467645253, 0.0283622774010291219,
        -0.0586933985909042636,  0.0923043211614773968,    -0.108803930141685278,  0.0822767384901140362,
        0.00358541548546329713,  -0.140240598585546701,    1.23751263083782758};
    return kAll[i];
  }
};
template <class Polynomial, int degree = Polynomial::kDegree>
struct Horner {
  template <class V>
  static CVK_HD V at(V x) {
    constexpr double own = Polynomial::coefficient(degree);
    if constexpr (degree == 0) {
      return elementary_constant<V>(own);
    } else {
      return Horner<Polynomial, degree - 1>::at(x) * x + elementary_constant<V>(own);
    }
  }
};

// 1 - erf x for x >= 0; 0 from 28 on, and for NaN. erfc x = exp(-x^2) p((x - k) / (x + k)) / (1 + 2 x), p a polynomial through
// Chebyshev's nodes: off by 2e-17 at most in double, by 4e-9 in float, before rounding.
template <class V>
CVK_HD V erfc_of_positive(V x) {
  constexpr bool kSingle = sizeof(typename LanesOf<V>::Element) == 4;
  const V last = elementary_constant<V>(28), k = elementary_constant<V>(kSingle ? 3 : 3.75);
  const V inside = x < last ? x : last;
  const V p = Horner<ErfcPolynomial<kSingle>>::at((inside - k) / (inside + k));
  return exp_of_negative(V{} - inside * inside) * p / (elementary_constant<V>(1) + elementary_constant<V>(2) * inside);
}

// An angle beyond it has lost its digits (in float32 it steps by 1 / 8); operators take it for infinite.
inline constexpr double kMostAngle = 0x1p20;

// Sine and cosine for |angle| <= kMostAngle, within 2^-52, odd and even to the bit. The multiple of pi / 2 is taken off in three
// parts of 33 bits, of which the first two give exact products; Taylor's polynomials take what is left, at most pi / 4.
CVK_HD void sine_cosine(double angle, double* sine, double* cosine) {
  const double size = angle < 0 ? -angle : angle;
  const double quarters = floor(size * 0.6366197723675814 + 0.5);  // 2 / pi
  const double r =
      ((size - quarters * 0x1.921fb544p+0) - quarters * 0x1.0b4611a6p-34) - quarters * 0x1.3198a2e037073p-69;
  const double q = r * r;
  double s = 1.0 / 355687428096000.0;  // 17!
  s = s * q - 1.0 / 1307674368000.0;
  s = s * q + 1.0 / 6227020800.0;
  s = s * q - 1.0 / 39916800.0;
  s = s * q + 1.0 / 362880.0;
  s = s * q - 1.0 / 5040.0;
  s = s * q + 1.0 / 120.0;
  s = s * q - 1.0 / 6.0;
  s = r + r * q * s;
  double c = 1.0 / 20922789888000.0;  // 16!
  c = c * q - 1.0 / 87178291200.0;
  c = c * q + 1.0 / 479001600.0;
  c = c * q - 1.0 / 3628800.0;
  c = c * q + 1.0 / 40320.0;
  c = c * q - 1.0 / 720.0;
  c = c * q + 1.0 / 24.0;
  c = (1.0 - 0.5 * q) + q * q * c;
  const int quadrant = static_cast<int>(quarters) & 3;
  const double upper = (quadrant & 1) != 0 ? c : s, right = (quadrant & 1) != 0 ? s : c;
  *sine = (quadrant >= 2) != (angle < 0) ? -upper : upper;
  *cosine = quadrant == 1 || quadrant == 2 ? -right : right;
}

}  // namespace cvk
