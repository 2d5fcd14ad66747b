#!/bin/bash
# The first device of every target cannot be attached: the other one of that host is taken, and the job goes on.
# deadline: 360
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

conf=$MC_DIR/etc/symvirt/noded.toml
restore() {
  [ ! -e "$conf.kept" ] || mv "$conf.kept" "$conf"
  for h in "${HOSTS[@]}"; do "$MC" service "$h" restart symvirt-noded; done
}
trap restore EXIT

# One VM, so that the host has a device to spare.
job=$(RING_NAME=one submit_ring 45 --symvirt -N1 -n2 --ntasks-per-node=2)
export RING_NAME=one RING_NET=
wait_ring_running "$job"
vm=$(job_field "$job" NodeList)
host=$(vm_host "$vm")
cp "$conf" "$conf.kept"
# The bridge of the first device does not exist: libvirt refuses it.
awk '/^\[\[device\]\]/ {n++} n == 1 {gsub(/br-fab/, "br-gone")} {print}' "$conf.kept" > "$conf"
cmp -s "$conf" "$conf.kept" && fail "the first device could not be broken"
for h in $(other_hosts "$host"); do "$MC" service "$h" restart symvirt-noded; done
mark=$(log_lines)
drain "$host"
drained_under_job "$host" "$job"
said_since "$mark" "attach failed" || fail "the attach did not fail: the test shows nothing"
job_alive "$job"
wait_job_end "$job" 120
assert_eq COMPLETED "$(job_state "$job")" "job $job"
assert_eq true "$(ring_field "$job" answers_correct)" "answers"
