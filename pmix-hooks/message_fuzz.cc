// libFuzzer: whatever ranks and guestd may send. Built with -DSYMVIRT_FUZZ=ON and clang:
//   cmake -S . -B build-fuzz -DCMAKE_CXX_COMPILER=clang++ -DSYMVIRT_FUZZ=ON &&
//   build-fuzz/pmix-hooks/message_fuzz -max_total_time=60
//
// Besides not crashing: what was understood can be said again and means the same.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "pmix-hooks/message.h"
#include "pmix-hooks/server/guest_protocol.h"

using namespace symvirt::hooks;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto command = parse_command(text)) {
    const auto again = parse_command(encode_command(*command));
    if (!again || !(*again == *command)) std::abort();
  }
  if (const auto answer = parse_answer(text)) {
    const auto again = parse_answer(encode_answer(*answer));
    if (!again || !(*again == *answer)) std::abort();
  }
  static_cast<void>(parse_presence(text));
  if (const auto message = parse_guest_line(text)) {
    if (const auto* reply = std::get_if<GuestReply>(&*message)) {
      static_cast<void>(parse_registered(*reply));
      static_cast<void>(parse_node_check(*reply));
    } else if (const auto* bad = std::get_if<BadRequest>(&*message)) {
      static_cast<void>(encode_error(bad->id, bad->error));
    }
  }
  return 0;
}
