// The paths of transactions: which phase follows which, who has work in one, how patient it is.
// Pure functions of the state; what changes it is in transaction.cc.
#pragma once

#include <set>
#include <string>

#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {

Phase first_phase(TxKind kind);
Phase phase_after(TxKind kind, Phase phase);
// Of the same path: `phase` comes before `other`.
bool is_before(TxKind kind, Phase phase, Phase other);

bool any_moving(const Transaction& tx);
// The VMs that share jobs with `vm`, directly or through others: what one job's decision binds.
std::set<std::string> bound_to(const Transaction& tx, const VmPart& vm);
// Who has work in a phase. Everything about "undo" is in it: a dropped VM is not moving, and the
// tail asks only what had been begun for it.
bool participates(const Transaction& tx, Phase phase, const VmPart& vm);
Outcome outcome_of(const Transaction& tx);

// How long a step is repeated before its failure is final.
std::int64_t patience_ns(const Transaction& tx, const Error& error);
std::int64_t longest_backoff_ms(Phase phase);
// Of the round that has begun: all rounds of quiesce together have the job's time.
std::int64_t round_ms(const Transaction& tx);

}  // namespace symvirt
