#!/bin/bash
# No host is free: the job runs on, the host stays DRAINING, the reason can be seen; when a host becomes free the VMs move.
# deadline: 360
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

status_says_why() { ctl symvirtctl status | grep -E '^v1 .*waits for a host: no healthy one has a free device'; }

job=$(submit_ring 70 --symvirt)
wait_ring_running "$job"
host=$(vm_host v1)
for h in $(other_hosts "$host"); do drain "$h" "also out"; done
mark=$(log_lines)
drain "$host"
wait_for 30 "the evacuation to wait for a host" said_since "$mark" "evacuate [0-9]+: v1 plan done"
sleep 5
assert_eq draining "$(node_state "$host")" "state of $host"
assert_eq "$host" "$(vm_host v1)" "host of v1"
job_alive "$job"
wait_for 20 "symvirtctl status to say why" status_says_why
spare=$(other_hosts "$host" | head -n1)
undrain "$spare"
drained_under_job "$host" "$job"
assert_eq "$spare" "$(vm_host v1)" "host of v1"
one_copy_each
wait_job_end "$job" 150
check_ring "$job"
