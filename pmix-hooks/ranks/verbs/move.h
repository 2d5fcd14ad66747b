// The steps a quiesce and a resume are made of; verbs_transport.cc says in which order, and what
// the processes tell each other in between.
//
// All run on the agent's thread, with Layer::control closed.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "pmix-hooks/ranks/verbs/exchange.h"
#include "pmix-hooks/ranks/verbs/layer.h"

namespace symvirt::hooks::verbs {

using std::chrono::milliseconds;

// How long a step waits. A round of the job waits for its slowest process, and the coordinator's
// own deadline is in the tens of seconds.
struct Patience {
  milliseconds control{2000};  // for create, modify, destroy calls under way
  milliseconds drain{5000};    // for what was sent, while something still comes
  milliseconds silence{300};   // without any completion: what is out may wait for a receiver
  milliseconds flush{3000};    // for queue pairs that were errored to give their work back
  milliseconds arrival{2000};  // for what the peers have sent to come
  milliseconds device{5000};   // for a device to be there again
};

using Statements = std::map<std::string, Statement>;

// quiesce.cc
// ------------------------------------------------------------------------------------------

// Notes what the ports are called, before the first move; forgets markers of a quiesce that was
// given up.
void begin_move(Layer& layer);
// A region that could not be made again, because its memory is protected now; empty: none.
std::string protected_memory(Layer& layer);
// Posts markers, collects completions. True: nothing that was sent is on its way any more.
bool drain_sends(Layer& layer, const Patience& patience);
// No process sends or posts receives any more, and `statements` were made after that: marks the
// queue pairs whose sends do not get on. False: one of them waits for something else than a
// receiver, or it is not known yet.
bool find_stuck(Layer& layer, const Statements& statements, const Patience& patience);
// Takes back their work, and stops the other ends of those of the peers: then nothing is executed
// on such a connection any more, and the counts of both ends are final. False: not all has come
// back yet; call it again.
bool take_back_stuck(Layer& layer, const Statements& statements, const Patience& patience);
// After a quiesce that was given up: the same for connections of which one end is stopped or new.
bool take_back_half_rebuilt(Layer& layer, const Statements& statements, const Patience& patience);
// Until as much has been received as the peers say they sent.
bool await_arrivals(Layer& layer, const Statements& statements, const Patience& patience);
// Held, and before queue pairs are reset: what they have completed so far. held_mutex is held.
void take_in(Layer& layer);
// With the peers' counts: what was executed of the work taken back is done.
void resolve_taken_back(Layer& layer, const Statements& statements);
// The end of a quiesce. Destroys every real object and closes the devices.
void tear_down(Layer& layer);
// Or, where the device stays: keeps all that. Marks the queue pairs of which the other end goes.
void keep_devices(Layer& layer, const Statements& statements);

// why.cc: for people. What keeps this process from being at rest (or running again); empty: nothing
// of its own.
std::string what_is_waited_for(Layer& layer, const Statements& statements);
std::string name_of(const VQp& qp);

// resume.cc
// -------------------------------------------------------------------------------------------

// Opens devices and makes the objects again. False: not (all of it) possible now; may be tried
// again.
bool reopen(Layer& layer, const Patience& patience);
// Connects to where the peers are now, and posts receives. The same.
bool connect(Layer& layer, Statements statements, std::uint64_t epoch);
// For a process that has opened no device yet, and had no part in the resume: peers' numbers are
// translated, and its own new objects get none that is carried.
void adopt(Layer& layer, Statements statements, const Patience& patience);
// Lets sends go, and then the application. False: not all could be posted; may be tried again.
bool run_again(Layer& layer, const Patience& patience);

// statement.cc
// ----------------------------------------------------------------------------------------

Statement describe(Layer& layer, std::uint32_t stage, bool ok);

}  // namespace symvirt::hooks::verbs
