// The manual page knows every option, twin and key that the code knows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "spank-symvirt/plugin/config.h"
#include "spank-symvirt/plugin/options.h"

namespace symvirt::plugin {
namespace {

using testing::HasSubstr;

// As a reader sees it: without the escapes that keep hyphens together.
std::string manual() {
  std::ifstream file(SYMVIRT_MANUAL);
  std::stringstream text;
  text << file.rdbuf();
  std::string plain = text.str();
  std::erase(plain, '\\');
  return plain;
}

TEST(Manual, HasEveryOptionAndItsTwin) {
  const std::string text = manual();
  for (const OptionSpec& spec : option_table()) {
    EXPECT_THAT(text, HasSubstr(std::string("--") + spec.name));
    if (spec.variable == nullptr) continue;
    EXPECT_THAT(text, HasSubstr(spec.variable));
  }
}

TEST(Manual, HasEveryKeyOfPlugstackConf) {
  const std::string text = manual();
  // The error that names the known keys is the list of them.
  const std::string known = parse_config({"no_such=1"}).error().message;
  std::string keys = known.substr(known.find("known are ") + 10);
  for (std::size_t and_at; (and_at = keys.find(" and ")) != std::string::npos;)
    keys.replace(and_at, 5, ", ");
  std::stringstream list(keys);
  int count = 0;
  for (std::string key; std::getline(list >> std::ws, key, ',');) {
    ++count;
    EXPECT_THAT(text, HasSubstr(key + "=")) << key;
  }
  EXPECT_EQ(count, 6);
}

}  // namespace
}  // namespace symvirt::plugin
