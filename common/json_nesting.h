// Guard before any JSON of others is parsed: nlohmann's parser keeps its own stack, but its copies
// and its printer recurse, so that a body of a million brackets would end a daemon.
#pragma once

#include <string_view>

namespace symvirt {

inline constexpr int kMostNesting = 32;

inline bool nested_too_deeply(std::string_view json, int most = kMostNesting) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > most) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace symvirt
