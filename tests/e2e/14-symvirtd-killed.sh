#!/bin/bash
# symvirtd is killed while the ranks are at rest, and started again: it takes up the transaction where it was, and the job completes.
# deadline: 360
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

job=$(submit_ring 60 --symvirt)
wait_ring_running "$job"
host=$(vm_host v1)
mark=$(log_lines)
drain "$host"
at_rest=no
for ((i = 0; i < 6000; i++)); do
  if said_since "$mark" "quiesce round 2 done|detach done"; then
    at_rest=yes
    break
  fi
  sleep 0.01
done
[ $at_rest = yes ] || fail "the ranks never came to rest: nothing to be interrupted"
"$MC" service ctl kill symvirtd
if said_since "$mark" "resume done"; then fail "symvirtd was killed too late: the ranks had been resumed"; fi
say "killed after: $(tail -n1 "$(symvirtd_log)")"
sleep 2
"$MC" service ctl start symvirtd
drained_under_job "$host" "$job"
job_alive "$job"
one_copy_each
said_since "$mark" "1 under way" || fail "symvirtd did not find the transaction in its journal"
wait_job_end "$job" 150
check_ring "$job"
