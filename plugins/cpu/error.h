// What a kernel refuses, in one line; ONNX Runtime turns it into its own exception. No C++ exception leaves the library.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "abi.h"

namespace dsv3 {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws an Error with all parts written one after the other.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// Throws the Error unless `condition` holds.
template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// Throws what ONNX Runtime says, if it says something.
inline void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = abi::get_error_message(api, status);
  abi::release_status(api, status);
  throw Error(message);
}

// Runs `body` and returns null, or the status of what it threw.
template <typename Body>
OrtStatus* guarded(const OrtApi* api, const char* where, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    try {
      return abi::create_status(api, abi::kFail, (std::string(where) + ": " + error.what()).c_str());
    } catch (...) {  // no memory for the message
      return abi::create_status(api, abi::kFail, where);
    }
  } catch (...) {
    return abi::create_status(api, abi::kFail, where);
  }
}

}  // namespace dsv3
