#!/bin/bash
# The host under both VMs of an MPI job is drained: the job goes on, its answers are right, the host is DRAINED and empty before it ends.
# deadline: 300
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

job=$(submit_ring 40 --symvirt --time=5)
wait_ring_running "$job"
host=$(vm_host v1)
assert_eq "$host" "$(vm_host v2)" "host of v2"
boot_id=$(on v1 cat /proc/sys/kernel/random/boot_id)
before=$(fabric_counter v1)
drain "$host" "memory errors"
drained_under_job "$host" "$job"
job_alive "$job"
one_copy_each
assert_eq "$boot_id" "$(on v1 cat /proc/sys/kernel/random/boot_id)" "boot id of v1"
# The counter began again with the new device; what it shows went over it.
after=$(fabric_counter v1)
assert_lt 100000 "$after" "bytes over the passthrough device after the move (before: $before)"
assert_eq "memory errors" "$(node_reason "$host")" "the administrator's reason"
wait_job_end "$job" 120
check_ring "$job"
assert_match "symvirt: .*moved.*v1:$host>" "$(ctl scontrol -o show job "$job")" "note on the job"
# The pause is given back in whole minutes.
assert_eq 00:06:00 "$(job_field "$job" TimeLimit)" "time limit"
