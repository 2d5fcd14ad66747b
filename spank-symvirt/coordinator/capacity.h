// The capacity rule: VM nodes must not promise more than the hosts can hold, or a busy pool would
// mean nodes set DOWN one after the other instead of pending jobs (docs/design.md, section 1). A
// pure function of one look.
#pragma once

#include "spank-symvirt/coordinator/watch.h"

namespace symvirt {

// Surplus powered-down VM nodes are drained, with a reason of ours; those and the ones whose boot
// found no host come back when there is room again.
void keep_capacity(const View& view, Decisions& out);

// "hca:2", "hca:ib:1(S:0-1),hca:eth:1,fpga:3(IDX:0,2-3)" -> 2, of "hca": what a node has, or has in
// use, as Slurm prints it.
int gres_count(const std::string& text, const std::string& name);

}  // namespace symvirt
