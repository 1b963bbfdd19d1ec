// edge4d's operators as plugins need them, whichever TensorRT: their schemas, and nodes, which are operators with
// attributes. Knows no type of TensorRT. What is wrong is thrown as a Failure.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "edge4d.h"

namespace edge4d {

constexpr const char* PLUGIN_NAMESPACE = "edge4d";
constexpr const char* PLUGIN_VERSION = "1";

// The C struct of any operator. Members are reached by their offset in it.
union Call {
  edge4d_gaussian_rasterize gaussian_rasterize;
  edge4d_knn_interpolate knn_interpolate;
  edge4d_farthest_point_sample farthest_point_sample;
  edge4d_voxel_neighbours voxel_neighbours;
  edge4d_submanifold_convolution submanifold_convolution;
  edge4d_gather_mean gather_mean;
  edge4d_window_attention window_attention;
};

enum class Type { STORED, FLOAT32, FLOAT16, INT32 };  // STORED: float32 or float16, all such inputs of a node alike

struct Tensor {
  const char* name;
  Type type;
  std::string_view dims;  // a digit for itself, # for 27, a letter for a size of the operator
  size_t address_at;
};

enum class Kind { INT, FLOAT, DTYPE };  // DTYPE: a word in the node, an edge4d_dtype in the struct

struct Attribute {
  const char* name;
  Kind kind;
  size_t at;
  std::optional<float> preset;  // of a DTYPE its number; none: it must be given
};

struct Size {
  char letter;
  size_t at;
};

struct Operator {
  const char* name;
  size_t call_bytes;
  size_t dtype_at;  // where the dtype of STORED inputs stands; 0: it has none
  std::vector<Attribute> attributes;
  std::vector<Size> sizes;
  std::vector<Tensor> (*inputs)(const Call& attributes);
  std::vector<Tensor> (*outputs)(const Call& attributes);
  void (*check)(const Call& attributes);  // refuses what cannot work, whatever the tensors' sizes
  uint64_t (*workspace)(const Call& call);
  int32_t (*launch)(const Call& call, void* workspace, uint64_t workspace_bytes, void* stream);
};

// In the order of kernels/ops.py.
const std::vector<Operator>& operators();

using Value = std::variant<int32_t, float, std::string_view>;  // in the order of Kind

struct Given {
  std::string_view name;
  Value value;
};

// The shape of an input.
struct Shape {
  int32_t rank;
  int64_t sizes[8];
};

// A size of an output: that of an input along an axis, or a number.
struct Extent {
  int32_t input;  // -1: `value` is the number
  int32_t value;  // the axis
};

// An operator with its attributes. Copies are independent; const members may run in several threads at once.
class Node {
 public:
  // Attributes that are not given have their defaults, or when `complete` is asked for are missed. Names that the
  // operator does not have are passed over.
  Node(const Operator& of, const std::vector<Given>& given, bool complete = false);

  // What `serialize` wrote. Other bytes are refused: of another operator or format, too few, too many.
  Node(const Operator& of, const void* data, size_t bytes);

  const Operator& of() const { return *of_; }
  const std::vector<Tensor>& inputs() const { return inputs_; }
  const std::vector<Tensor>& outputs() const { return outputs_; }

  const void* address(const Attribute& attribute) const;    // of its four bytes
  std::string_view word(const Attribute& attribute) const;  // of a DTYPE; constant
  size_t serialized_bytes() const;
  void serialize(void* to) const;

  // The sizes of an output of inputs that have these ranks, one for each input.
  std::vector<Extent> extents(size_t output, const std::vector<int32_t>& ranks) const;

  // Refuses shapes that the operator cannot take, `shapes` one for each input.
  void check_shapes(const Shape* shapes) const { sized(shapes, Type::FLOAT32); }

  // Smaller sizes need no more.
  uint64_t workspace_bytes(const Shape* shapes, Type stored) const;

  // Puts the work into a cudaStream_t and returns: allocates nothing, waits for nothing.
  void enqueue(const Shape* shapes, Type stored, const void* const* inputs, void* const* outputs, void* workspace,
               void* stream) const;

 private:
  explicit Node(const Operator& of);
  void finish();
  void check_rank(size_t input, int32_t rank) const;
  size_t at(char letter) const;
  int64_t expected_size(char dim, int64_t found, Call& call, std::bitset<128>& known) const;
  Call sized(const Shape* shapes, Type stored) const;

  const Operator* of_;
  Call call_ = {};  // sizes and addresses are those of a call, and stay 0 here
  std::vector<Tensor> inputs_, outputs_;
};

}  // namespace edge4d
