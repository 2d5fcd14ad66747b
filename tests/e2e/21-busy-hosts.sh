#!/bin/bash
# Somebody's job holds every device of every host: a --symvirt job stays pending, and no VM node is given up for it. When that job
# ends, it runs.
# deadline: 300
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

in_use() { ctl scontrol -d -o show node "$1" | grep -oE 'GresUsed=[^ ]*' | cut -d= -f2; } # HOST
no_node_down() {
  local vm
  for vm in "${VMS[@]}"; do
    [[ $(node_state "$vm") != down* ]] || fail "$vm is DOWN: $(node_reason "$vm")"
  done
}
taken_back() { [[ $(node_reason "$1") == "symvirt: no host"* ]]; } # VM NODE
not_taken_back() { ! taken_back "$1"; }

"$MC" reset --vms # they would hold devices
foreign=$(user sbatch --parsable -p hosts -N3 --gres=hca:2 -J foreign --time=10 -D /tmp -o /dev/null --wrap "sleep 600")
wait_for 30 "the foreign job to run" job_is "$foreign" RUNNING
for h in "${HOSTS[@]}"; do assert_match "^hca:2(\(|$)" "$(in_use "$h")" "devices of $h in use"; done

job=$(RING_NAME=busy submit_ring 10 --symvirt)
export RING_NAME=busy
for vm in "${VMS[@]}"; do wait_for 20 "$vm to be taken back" taken_back "$vm"; done
for ((i = 0; i < 30; i++)); do
  assert_eq PENDING "$(job_state "$job")" "job without a host"
  no_node_down
  for vm in "${VMS[@]}"; do assert_eq "" "$(vm_host "$vm")" "host of $vm"; done
  sleep 0.5
done
say "job $job waits: $(job_field "$job" Reason)"

user scancel "$foreign"
for vm in "${VMS[@]}"; do wait_for 30 "$vm to come back" not_taken_back "$vm"; done
wait_ring_running "$job" 150
no_node_down
wait_job_end "$job" 60
check_ring "$job"
assert_eq 0 "$(job_field "$job" Restarts)" "times the job was started in vain"
