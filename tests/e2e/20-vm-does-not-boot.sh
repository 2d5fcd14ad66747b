#!/bin/bash
# A VM that cannot be given its device: its node is DOWN and says why, nothing is left on the host, Slurm requeues the job, which runs
# when the administrator has mended the cause and resumed the nodes.
# deadline: 540
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

conf=$MC_DIR/etc/symvirt/noded.toml
mend() {
  [ ! -e "$conf.kept" ] || mv "$conf.kept" "$conf"
  for h in "${HOSTS[@]}"; do "$MC" service "$h" restart symvirt-noded; done
  for vm in "${VMS[@]}"; do
    if node_is_down "$vm"; then ctl scontrol update nodename="$vm" state=resume; fi
  done
}
node_is_down() { [[ $(node_state "$1") == down* ]]; }
any_node_down() { node_is_down v1 || node_is_down v2; }
requeued() { [ "$(job_field "$job" Restarts)" -ge 1 ]; }
trap mend EXIT

"$MC" reset --vms # one that runs already needs no device
cp "$conf" "$conf.kept"
# The bridge of every device does not exist: libvirt refuses each of them.
sed -i 's/br-fab/br-gone/' "$conf"
cmp -s "$conf" "$conf.kept" && fail "the devices could not be broken"
for h in "${HOSTS[@]}"; do "$MC" service "$h" restart symvirt-noded; done

job=$(RING_NAME=boot submit_ring 20 --symvirt -N1 -n2 --ntasks-per-node=2)
export RING_NAME=boot RING_NET=
wait_for 240 "a VM node to be DOWN" any_node_down # boot_s: 100
vm=v1
node_is_down v1 || vm=v2
reason=$(ctl scontrol -o show node "$vm" | sed -n 's/.* Reason=//p')
say "$vm: $reason"
assert_match "^symvirt: .*attach" "$reason" "reason of $vm"
assert_eq "" "$(vm_host "$vm")" "host of $vm"
wait_for 60 "job $job to be requeued" requeued
mend
trap - EXIT
ctl scontrol update jobid="$job" starttime=now # Slurm would hold a requeued job for two minutes
wait_ring_running "$job" 240                    # and looks through its queue once a minute
wait_job_end "$job" 120
assert_eq COMPLETED "$(job_state "$job")" "job $job"
assert_eq true "$(ring_field "$job" answers_correct)" "answers"
