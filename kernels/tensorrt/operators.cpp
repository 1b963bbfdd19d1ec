#include "operators.hpp"

#include <algorithm>
#include <climits>
#include <cstring>
#include <iterator>
#include <string>

#include "checks.hpp"
#include "status.hpp"

namespace edge4d {
namespace {

// ---- GaussianRasterize ----------------------------------------------------------------------------------------------

namespace rasterize {

using C = edge4d_gaussian_rasterize;

std::vector<Tensor> inputs(const Call& attributes) {
  const bool harmonics = attributes.gaussian_rasterize.sh_degree >= 0;
  return {{"means", Type::STORED, "BN3", offsetof(C, means)},
          {"quats", Type::STORED, "BN4", offsetof(C, quats)},
          {"scales", Type::STORED, "BN3", offsetof(C, scales)},
          {"opacities", Type::STORED, "BN", offsetof(C, opacities)},
          {"colors", Type::STORED, harmonics ? "BNK3" : "BNC", offsetof(C, colors)},
          {"viewmats", Type::FLOAT32, "BV44", offsetof(C, viewmats)},
          {"Ks", Type::FLOAT32, "BV33", offsetof(C, Ks)},
          {"background", Type::FLOAT32, "C", offsetof(C, background)}};
}

std::vector<Tensor> outputs(const Call& attributes) {
  const C& call = attributes.gaussian_rasterize;
  const Type type = call.out_dtype == EDGE4D_FLOAT16 ? Type::FLOAT16 : Type::FLOAT32;
  const auto dims = [&](edge4d_output output, const char* drawn) { return call.outputs & output ? drawn : "0"; };
  return {{"image", type, dims(EDGE4D_IMAGE, "BVHWC"), offsetof(C, image)},
          {"alpha", type, dims(EDGE4D_ALPHA, "BVHW1"), offsetof(C, alpha)},
          {"depth", type, dims(EDGE4D_DEPTH, "BVHW1"), offsetof(C, depth)},
          {"stats", Type::INT32, "BV5", offsetof(C, stats)}};
}

void check(const Call& attributes) {
  constexpr Require require{"GaussianRasterize"};
  C call = attributes.gaussian_rasterize;
  call.channels = 3;  // sizes that any attributes can do with
  call.coefficients = call.sh_degree < 0 ? 0 : (call.sh_degree + 1) * (call.sh_degree + 1);
  check_attributes(call);
  require(call.max_pairs > 0, "on the GPU max_pairs must be positive");
  require(call.out_dtype != EDGE4D_UINT8, "TensorRT has no plugins that give uint8; draw float32 or float16");
}

Operator schema() {
  return {
      "GaussianRasterize",
      sizeof(C),
      offsetof(C, dtype),
      {{"width", Kind::INT, offsetof(C, width), {}},
       {"height", Kind::INT, offsetof(C, height), {}},
       {"near", Kind::FLOAT, offsetof(C, near), 0.01f},
       {"far", Kind::FLOAT, offsetof(C, far), 1e10f},
       {"eps2d", Kind::FLOAT, offsetof(C, eps2d), 0.3f},
       {"antialiased", Kind::INT, offsetof(C, antialiased), 0.f},
       {"compensation_floor", Kind::FLOAT, offsetof(C, compensation_floor), 0.f},
       {"alpha_max", Kind::FLOAT, offsetof(C, alpha_max), 0.999f},
       {"sh_degree", Kind::INT, offsetof(C, sh_degree), -1.f},
       {"max_pairs", Kind::INT, offsetof(C, max_pairs), 0.f},
       {"outputs", Kind::INT, offsetof(C, outputs), float(EDGE4D_IMAGE | EDGE4D_ALPHA | EDGE4D_DEPTH)},
       {"out_dtype", Kind::DTYPE, offsetof(C, out_dtype), float(EDGE4D_FLOAT32)},
       {"fast", Kind::INT, offsetof(C, fast), 0.f}},
      {{'B', offsetof(C, batch)},
       {'V', offsetof(C, cameras)},
       {'N', offsetof(C, gaussians)},
       {'C', offsetof(C, channels)},
       {'K', offsetof(C, coefficients)},
       {'H', offsetof(C, height)},
       {'W', offsetof(C, width)}},
      inputs,
      outputs,
      check,
      [](const Call& call) { return edge4d_cuda_gaussian_rasterize_workspace(&call.gaussian_rasterize); },
      [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
        return edge4d_cuda_gaussian_rasterize(&call.gaussian_rasterize, workspace, bytes, stream);
      }};
}

}  // namespace rasterize

// ---- KnnInterpolate -------------------------------------------------------------------------------------------------

namespace interpolate {

using C = edge4d_knn_interpolate;

std::vector<Tensor> inputs(const Call&) {
  return {{"queries", Type::FLOAT32, "Q3", offsetof(C, queries)},
          {"points", Type::FLOAT32, "M3", offsetof(C, points)},
          {"values", Type::FLOAT32, "TMC", offsetof(C, values)}};
}

std::vector<Tensor> outputs(const Call&) {
  return {{"values", Type::FLOAT32, "TQC", offsetof(C, interpolated)},
          {"indices", Type::INT32, "Qk", offsetof(C, indices)},
          {"weights", Type::FLOAT32, "Qk", offsetof(C, weights)}};
}

void check(const Call& attributes) {
  C call = attributes.knn_interpolate;
  call.point_count = K_MAX;  // enough for any k
  check_attributes(call);
}

Operator schema() {
  return {"KnnInterpolate",
          sizeof(C),
          0,
          {{"k", Kind::INT, offsetof(C, k), 8.f},
           {"beta", Kind::FLOAT, offsetof(C, beta), 7.f},
           {"radius_mask", Kind::INT, offsetof(C, radius_mask), 1.f}},
          {{'Q', offsetof(C, query_count)},
           {'M', offsetof(C, point_count)},
           {'T', offsetof(C, frames)},
           {'C', offsetof(C, channels)},
           {'k', offsetof(C, k)}},
          inputs,
          outputs,
          check,
          [](const Call& call) { return edge4d_cuda_knn_interpolate_workspace(&call.knn_interpolate); },
          [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
            return edge4d_cuda_knn_interpolate(&call.knn_interpolate, workspace, bytes, stream);
          }};
}

}  // namespace interpolate

// ---- FarthestPointSample --------------------------------------------------------------------------------------------

namespace sample {

using C = edge4d_farthest_point_sample;

std::vector<Tensor> inputs(const Call&) { return {{"points", Type::FLOAT32, "N3", offsetof(C, points)}}; }

std::vector<Tensor> outputs(const Call&) { return {{"indices", Type::INT32, "L", offsetof(C, indices)}}; }

void check(const Call& attributes) {
  C call = attributes.farthest_point_sample;
  call.point_count = INT_MAX;  // enough for any count
  check_attributes(call);
}

Operator schema() {
  return {"FarthestPointSample",
          sizeof(C),
          0,
          {{"count", Kind::INT, offsetof(C, count), {}}},
          {{'N', offsetof(C, point_count)}, {'L', offsetof(C, count)}},
          inputs,
          outputs,
          check,
          [](const Call& call) { return edge4d_cuda_farthest_point_sample_workspace(&call.farthest_point_sample); },
          [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
            return edge4d_cuda_farthest_point_sample(&call.farthest_point_sample, workspace, bytes, stream);
          }};
}

}  // namespace sample

// ---- VoxelNeighbours ------------------------------------------------------------------------------------------------

namespace voxels {

using C = edge4d_voxel_neighbours;

std::vector<Tensor> inputs(const Call&) { return {{"coords", Type::INT32, "N3", offsetof(C, coords)}}; }

std::vector<Tensor> outputs(const Call&) { return {{"neighbours", Type::INT32, "N#", offsetof(C, neighbours)}}; }

Operator schema() {
  return {"VoxelNeighbours",
          sizeof(C),
          0,
          {{"resolution", Kind::INT, offsetof(C, resolution), {}}},
          {{'N', offsetof(C, voxel_count)}},
          inputs,
          outputs,
          [](const Call& attributes) { check_attributes(attributes.voxel_neighbours); },
          [](const Call& call) { return edge4d_cuda_voxel_neighbours_workspace(&call.voxel_neighbours); },
          [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
            return edge4d_cuda_voxel_neighbours(&call.voxel_neighbours, workspace, bytes, stream);
          }};
}

}  // namespace voxels

// ---- SubmanifoldConvolution -----------------------------------------------------------------------------------------

namespace convolve {

using C = edge4d_submanifold_convolution;

std::vector<Tensor> inputs(const Call&) {
  return {{"features", Type::STORED, "NC", offsetof(C, features)},
          {"neighbours", Type::INT32, "N#", offsetof(C, neighbours)},
          {"weight", Type::STORED, "#CD", offsetof(C, weight)},
          {"bias", Type::STORED, "D", offsetof(C, bias)}};
}

std::vector<Tensor> outputs(const Call&) { return {{"convolved", Type::STORED, "ND", offsetof(C, convolved)}}; }

Operator schema() {
  return {"SubmanifoldConvolution",
          sizeof(C),
          offsetof(C, dtype),
          {},
          {{'N', offsetof(C, voxel_count)}, {'C', offsetof(C, inputs)}, {'D', offsetof(C, outputs)}},
          inputs,
          outputs,
          [](const Call&) {},
          [](const Call& call) { return edge4d_cuda_submanifold_convolution_workspace(&call.submanifold_convolution); },
          [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
            return edge4d_cuda_submanifold_convolution(&call.submanifold_convolution, workspace, bytes, stream);
          }};
}

}  // namespace convolve

// ---- GatherMean -----------------------------------------------------------------------------------------------------

namespace average {

using C = edge4d_gather_mean;

std::vector<Tensor> inputs(const Call&) {
  return {{"features", Type::STORED, "NC", offsetof(C, features)}, {"table", Type::INT32, "MK", offsetof(C, table)}};
}

std::vector<Tensor> outputs(const Call&) { return {{"means", Type::STORED, "MC", offsetof(C, means)}}; }

void check(const Call& attributes) {
  C call = attributes.gather_mean;
  call.channels = 1;  // enough for any zeros
  check_attributes(call);
}

Operator schema() {
  return {"GatherMean",
          sizeof(C),
          offsetof(C, dtype),
          {{"zeros", Kind::INT, offsetof(C, zeros), 0.f}},
          {{'N', offsetof(C, row_count)},
           {'C', offsetof(C, channels)},
           {'M', offsetof(C, mean_count)},
           {'K', offsetof(C, most_rows)}},
          inputs,
          outputs,
          check,
          [](const Call& call) { return edge4d_cuda_gather_mean_workspace(&call.gather_mean); },
          [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
            return edge4d_cuda_gather_mean(&call.gather_mean, workspace, bytes, stream);
          }};
}

}  // namespace average

// ---- WindowAttention ------------------------------------------------------------------------------------------------

namespace attend {

using C = edge4d_window_attention;

std::vector<Tensor> inputs(const Call&) {
  return {{"qkv", Type::STORED, "N3HD", offsetof(C, qkv)}, {"windows", Type::INT32, "WK", offsetof(C, windows)}};
}

std::vector<Tensor> outputs(const Call&) { return {{"attended", Type::STORED, "NHD", offsetof(C, attended)}}; }

Operator schema() {
  return {"WindowAttention",
          sizeof(C),
          offsetof(C, dtype),
          {},
          {{'N', offsetof(C, row_count)},
           {'H', offsetof(C, heads)},
           {'D', offsetof(C, channels)},
           {'W', offsetof(C, window_count)},
           {'K', offsetof(C, longest)}},
          inputs,
          outputs,
          [](const Call&) {},
          [](const Call& call) { return edge4d_cuda_window_attention_workspace(&call.window_attention); },
          [](const Call& call, void* workspace, uint64_t bytes, void* stream) {
            return edge4d_cuda_window_attention(&call.window_attention, workspace, bytes, stream);
          }};
}

}  // namespace attend

[[noreturn]] void refuse(const Operator& of, const std::string& message) {
  edge4d::refuse(std::string(of.name) + ": " + message);
}

// ---- members by offset ----------------------------------------------------------------------------------------------

template <class T>
void set(Call& call, size_t at, T value) {
  std::memcpy(reinterpret_cast<char*>(&call) + at, &value, sizeof value);
}

int32_t int_at(const Call& call, size_t at) {
  int32_t value;
  std::memcpy(&value, reinterpret_cast<const char*>(&call) + at, sizeof value);
  return value;
}

// What a dim stands for that is no letter; -1: a letter.
int32_t number_of(char dim) { return dim == '#' ? 27 : dim >= '0' && dim <= '9' ? dim - '0' : -1; }

// ---- attributes -----------------------------------------------------------------------------------------------------

constexpr std::string_view DTYPES[] = {"float32", "float16", "uint8"};  // edge4d_dtype

const Given* find(const std::vector<Given>& given, std::string_view name) {
  for (const Given& one : given)
    if (one.name == name) return &one;
  return nullptr;
}

int32_t dtype_of(const Operator& of, const Attribute& attribute, std::string_view word) {
  for (int32_t i = 0; i < int32_t(std::size(DTYPES)); ++i)
    if (DTYPES[i] == word) return i;
  refuse(of, std::string(attribute.name) + " is '" + std::string(word) + "'; allowed: float32, float16.");
}

void set_default(Call& call, const Attribute& attribute) {
  if (attribute.kind == Kind::FLOAT) {
    set(call, attribute.at, *attribute.preset);
  } else {
    set(call, attribute.at, int32_t(*attribute.preset));
  }
}

void set_given(Call& call, const Operator& of, const Attribute& attribute, const Value& value) {
  constexpr const char* KINDS[] = {"an int32", "a float32", "a string"};
  if (value.index() != size_t(attribute.kind))
    refuse(of, std::string(attribute.name) + " is " + KINDS[value.index()] + "; expected " +
                   KINDS[size_t(attribute.kind)] + ".");
  if (attribute.kind == Kind::FLOAT) {
    set(call, attribute.at, std::get<float>(value));
  } else if (attribute.kind == Kind::INT) {
    set(call, attribute.at, std::get<int32_t>(value));
  } else {
    set(call, attribute.at, dtype_of(of, attribute, std::get<std::string_view>(value)));
  }
}

// ---- serialized nodes -----------------------------------------------------------------------------------------------

// A header, then the four bytes of each attribute in the schema's order.
struct Header {
  char magic[4];
  int32_t format;
};

constexpr Header HEADER = {{'e', '4', 'd', 'p'}, 1};
constexpr size_t ATTRIBUTE_BYTES = 4;

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = {rasterize::schema(), interpolate::schema(), sample::schema(),
                                            voxels::schema(),    convolve::schema(),    average::schema(),
                                            attend::schema()};
  return all;
}

// ---- Node -----------------------------------------------------------------------------------------------------------

Node::Node(const Operator& of) : of_(&of) { set(call_, 0, uint64_t(of.call_bytes)); }

Node::Node(const Operator& of, const std::vector<Given>& given, bool complete) : Node(of) {
  for (const Attribute& attribute : of.attributes) {
    const Given* const one = find(given, attribute.name);
    if (!one && (complete || !attribute.preset))
      refuse(of, std::string("attribute ") + attribute.name + " is missing.");
    if (one) {
      set_given(call_, of, attribute, one->value);
    } else {
      set_default(call_, attribute);
    }
  }
  finish();
}

Node::Node(const Operator& of, const void* data, size_t bytes) : Node(of) {
  const char* const begin = static_cast<const char*>(data);
  Header header = {};
  if (data && bytes >= sizeof header) std::memcpy(&header, begin, sizeof header);
  if (std::memcmp(header.magic, HEADER.magic, sizeof header.magic))
    refuse(of, "this is no serialized plugin of edge4d.");
  if (header.format != HEADER.format)
    refuse(of, "the serialized plugin has format " + std::to_string(header.format) + "; this library reads " +
                   std::to_string(HEADER.format) + ". Build the engine again.");
  if (bytes != serialized_bytes())
    refuse(of, "the serialized plugin has " + std::to_string(bytes) + " bytes; it should have " +
                   std::to_string(serialized_bytes()) + ".");
  const char* from = begin + sizeof header;
  for (const Attribute& attribute : of.attributes) {
    std::memcpy(reinterpret_cast<char*>(&call_) + attribute.at, from, ATTRIBUTE_BYTES);
    from += ATTRIBUTE_BYTES;
  }
  finish();
}

void Node::finish() {
  of_->check(call_);
  inputs_ = of_->inputs(call_);
  outputs_ = of_->outputs(call_);
}

const void* Node::address(const Attribute& attribute) const {
  return reinterpret_cast<const char*>(&call_) + attribute.at;
}

std::string_view Node::word(const Attribute& attribute) const { return DTYPES[int_at(call_, attribute.at)]; }

size_t Node::serialized_bytes() const { return sizeof HEADER + of_->attributes.size() * ATTRIBUTE_BYTES; }

void Node::serialize(void* to) const {
  char* const data = static_cast<char*>(to);
  std::memcpy(data, &HEADER, sizeof HEADER);
  size_t end = sizeof HEADER;
  for (const Attribute& attribute : of_->attributes) {
    std::memcpy(data + end, address(attribute), ATTRIBUTE_BYTES);
    end += ATTRIBUTE_BYTES;
  }
}

void Node::check_rank(size_t input, int32_t rank) const {
  const Tensor& tensor = inputs_[input];
  if (size_t(rank) != tensor.dims.size())
    refuse(*of_, std::string(tensor.name) + " has " + std::to_string(rank) + " dimensions; expected " +
                     std::to_string(tensor.dims.size()) + " (" + std::string(tensor.dims) + ").");
}

size_t Node::at(char letter) const {
  for (const Size& size : of_->sizes)
    if (size.letter == letter) return size.at;
  refuse(*of_, std::string("there is no size ") + letter + ".");
}

std::vector<Extent> Node::extents(size_t output, const std::vector<int32_t>& ranks) const {
  for (size_t input = 0; input < inputs_.size(); ++input) check_rank(input, ranks[input]);
  const auto extent = [&](char dim) -> Extent {
    if (number_of(dim) >= 0) return {-1, number_of(dim)};
    for (size_t input = 0; input < inputs_.size(); ++input) {
      const size_t axis = inputs_[input].dims.find(dim);
      if (axis != std::string_view::npos) return {int32_t(input), int32_t(axis)};
    }
    return {-1, int_at(call_, at(dim))};
  };
  std::vector<Extent> result;
  for (const char dim : outputs_[output].dims) result.push_back(extent(dim));
  return result;
}

int64_t Node::expected_size(char dim, int64_t found, Call& call, std::bitset<128>& known) const {
  if (number_of(dim) >= 0) return number_of(dim);
  const size_t member = at(dim);
  if (!known[size_t(dim)]) set(call, member, int32_t(std::min<int64_t>(std::max<int64_t>(found, 0), INT_MAX)));
  known.set(size_t(dim));
  return int_at(call, member);
}

Call Node::sized(const Shape* shapes, Type stored) const {
  Call call = call_;
  if (of_->dtype_at) set(call, of_->dtype_at, int32_t(stored == Type::FLOAT16 ? EDGE4D_FLOAT16 : EDGE4D_FLOAT32));
  std::bitset<128> known;  // letters; the first tensor that has one decides
  for (size_t input = 0; input < inputs_.size(); ++input) {
    const Tensor& tensor = inputs_[input];
    check_rank(input, shapes[input].rank);
    for (size_t axis = 0; axis < tensor.dims.size(); ++axis) {
      const int64_t found = shapes[input].sizes[axis], expected = expected_size(tensor.dims[axis], found, call, known);
      if (found != expected)
        refuse(*of_, std::string(tensor.name) + " has size " + std::to_string(found) + " along axis " +
                         std::to_string(axis) + "; expected " + std::to_string(expected) + ".");
    }
  }
  return call;
}

uint64_t Node::workspace_bytes(const Shape* shapes, Type stored) const { return of_->workspace(sized(shapes, stored)); }

void Node::enqueue(const Shape* shapes, Type stored, const void* const* inputs, void* const* outputs, void* workspace,
                   void* stream) const {
  Call call = sized(shapes, stored);
  for (size_t i = 0; i < inputs_.size(); ++i) set(call, inputs_[i].address_at, inputs[i]);
  for (size_t i = 0; i < outputs_.size(); ++i) set(call, outputs_[i].address_at, outputs[i]);
  const int32_t status = of_->launch(call, workspace, of_->workspace(call), stream);
  if (status) throw Failure{edge4d_status(status), edge4d_last_error()};
}

}  // namespace edge4d
