// Ending a migration to another host that is wanted no more. Asking libvirt is not enough: its
// answer means that QEMU has been told, and two moments are bad ones (libvirt 9.0, QEMU 7.2).
//
// The switchover, when the VM is paused and its last state is sent: QEMU may have given up the
// disks already, and the VM that goes on here dies with its next write, or its next migration:
// "bdrv_inactivate_recurse: Assertion `!(bs->open_flags & BDRV_O_INACTIVE)' failed". It is short,
// and nearly always ends well; so it is left alone as long as it can be.
//
// Just before it: QEMU pauses the VM, takes the abort, and lets it run again before libvirt has
// looked, which then waits for the pause forever (qemuMigrationSrcRun, "Wait for the STOP event").
// A moment's pause is what it gets; it runs the VM again itself, and so do we.
//
// Threads: any. Nothing here keeps state between calls.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "node-helper/host/hypervisor.h"

namespace symvirt::host {

// At most, and shorter when the deadline is near.
struct MigrationEndTimes {
  std::chrono::milliseconds switchover{5'000};  // may last so long before it is aborted too
  std::chrono::milliseconds stuck{3'000};       // the abort was taken so long ago: nudged
};

// Over when no migration of `vm` to another host goes on and it is here, running if it ran before.
// kPrecondition: it has left. kDeadline: the migration has not ended; the VM is not left paused by
// this. Other errors: the hypervisor's. `stopping`, when true, ends the wait as the deadline does.
Status end_migration(Hypervisor& hypervisor, const std::string& vm, Deadline deadline,
                     const std::function<bool()>& stopping, const MigrationEndTimes& times = {});

}  // namespace symvirt::host
