// An accelerator for tests on machines without one: a device of torch's own dispatcher (PrivateUse1, called `desk`)
// whose memory is the host's, but whose tensors are none of the CPU's. Every operator runs by the CPU's kernel on
// memory of the device, after a check that no tensor of the CPU with dimensions is among its arguments.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <set>
#include <string>

namespace {

constexpr auto DESK = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? std::malloc(bytes) : nullptr;
    return {place, place, &std::free, c10::Device(DESK, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(DESK, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DESK; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return c10::Device(DESK, 0); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(getDevice()); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

// The same memory as a tensor of the CPU, for its kernels alone.
at::Tensor host(const at::Tensor& t) {
  if (!t.defined() || t.device().type() != DESK) return t;
  auto storage = t.storage();
  auto seen = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
      c10::DataPtr(storage.mutable_data(), c10::Device(c10::DeviceType::CPU)), c10::GetCPUAllocator(), true);
  at::Tensor made = at::detail::make_tensor<at::TensorImpl>(
      c10::Storage(seen), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.is_conj()) made._set_conj(true);
  if (t.is_neg()) made._set_neg(true);
  return made;
}

// As on Apple's GPUs, where it is asked for.
c10::ScalarType known(c10::ScalarType dtype) {
  static const bool single = std::getenv("DESK_HAS_NO_FLOAT64") != nullptr;
  TORCH_CHECK_TYPE(!single || dtype != c10::ScalarType::Double, "desk does not support float64");
  return dtype;
}

at::Tensor strided_of(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, known(c10::dtype_or_default(dtype)));
}

at::Tensor empty_of(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, known(c10::dtype_or_default(dtype)), format);
}

at::Tensor moved(const at::Tensor& t) {
  if (!t.defined()) return t;
  at::Tensor made = at::detail::empty_strided_generic(t.sizes(), t.strides(), &memory, KEYS, known(t.scalar_type()));
  host(made).copy_(t);
  return made;
}

const at::Tensor& resized(const at::Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  auto bytes = (impl->numel() + impl->storage_offset()) * self.itemsize();
  auto storage = self.storage();
  if (storage.nbytes() < bytes) {
    auto place = memory.allocate(bytes);
    std::memcpy(place.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(place));
    storage.set_nbytes(bytes);
  }
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  host(to).copy_(host(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  resized(to, self.sizes(), std::nullopt);
  return copy_from(self, to, false);
}

// Indices may lie on the CPU, as on any accelerator.
const std::set<std::string> TAKES_HOST = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_",
                                          "aten::index_put", "aten::_unsafe_index.Tensor"};

std::string full(const c10::FunctionSchema& schema) {
  return schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
}

struct Seen {
  bool device = false, cpu = false;
  void note(const at::Tensor& t) {
    if (!t.defined()) return;
    if (t.device().type() == DESK) device = true;
    else if (t.dim() > 0) cpu = true;
  }
};

// Replaces tensors of the device, alone or in lists, by their memory as the CPU's; notes where they were.
c10::IValue lowered(const c10::IValue& value, Seen& seen) {
  if (value.isTensor()) {
    seen.note(value.toTensor());
    return host(value.toTensor());
  }
  if (value.isTensorList()) {
    std::vector<at::Tensor> made;
    for (const at::Tensor& t : value.toTensorVector()) { seen.note(t); made.push_back(host(t)); }
    return made;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> made;
    for (std::optional<at::Tensor> t : value.toOptionalTensorList()) {
      if (t.has_value()) { seen.note(*t); made.push_back(host(*t)); }
      else made.push_back(std::nullopt);
    }
    return made;
  }
  if (value.isDevice()) return c10::IValue(c10::Device(c10::DeviceType::CPU));
  return value;
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  std::vector<c10::IValue> given(stack->end() - count, stack->end());
  Seen seen;
  for (size_t i = 0; i < count; i++) (*stack)[stack->size() - count + i] = lowered(given[i], seen);
  TORCH_CHECK(!(seen.device && seen.cpu) || TAKES_HOST.count(full(schema)),
              "Expected all tensors to be on the same device, but ", full(schema), " was given some on desk:0 and some on cpu");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const auto returns = schema.returns().size();
  for (size_t i = 0; i < returns; i++) {
    auto& value = (*stack)[stack->size() - returns + i];
    const auto* alias = schema.returns()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {  // the tensor that was written to is the one that was given
      for (size_t k = 0; k < count; k++) {
        const auto* own = schema.arguments()[k].alias_info();
        if (own == nullptr || !own->isWrite() || own->beforeSets() != alias->beforeSets()) continue;
        if (value.isTensor() && given[k].isTensor()) {
          const auto& out = given[k].toTensor();
          if (out.device().type() == DESK && !out.sizes().equals(value.toTensor().sizes())) {
            auto result = value.toTensor();
            resized(out, result.sizes(), std::nullopt);
            host(out).copy_(result);
          }
        }
        value = given[k];
      }
      continue;
    }
    TORCH_CHECK(alias == nullptr, full(schema), " returns a view, and desk has no kernel for it");
    if (value.isTensor()) value = moved(value.toTensor());
    else if (value.isTensorList()) {
      std::vector<at::Tensor> made;
      for (const at::Tensor& t : value.toTensorVector()) made.push_back(moved(t));
      value = made;
    }
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  if (stride.data() == nullptr || stride.empty()) { impl->set_sizes_contiguous(size); impl->set_storage_offset(offset); }
  else impl->set_sizes_and_strides(size, stride, offset);
  return self;
}

at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
  const int64_t count = source.nbytes() / self.itemsize();
  return set_storage(self, source, 0, {count}, {});
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const std::optional<at::Tensor> own = bias.has_value() ? std::optional(host(*bias)) : std::nullopt;
  return moved(at::convolution_symint(host(x), host(w), own, stride, padding, dilation, transposed, output_padding,
                                      groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& w, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> wanted) {
  const auto outputs = transposed ? w.size(1) * groups.expect_int() : w.size(0);
  const std::vector<c10::SymInt> bias = {outputs};
  auto [dx, dw, db] = at::convolution_backward_symint(host(dy), host(x), host(w), c10::SymIntArrayRef(bias), stride,
                                                      padding, dilation, transposed, output_padding, groups, wanted);
  return {moved(dx), moved(dw), moved(db)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("empty.memory_format", &empty_of);
  m.impl("empty_strided", &strided_of);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
  m.impl("resize_", &resized);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
}

}  // namespace

extern "C" void begin() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
