#!/bin/bash
# VMs of one job on two hosts; one host is drained. The other VM rests meanwhile and stays where it is.
# deadline: 300
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

job=$(submit_ring 60 --symvirt)
wait_ring_running "$job"
first=$(vm_host v1)
read -r second third <<<"$(other_hosts "$first" | xargs)"
ctl timeout 100 symvirtctl migrate v2 --to "$second"
assert_eq "$second" "$(vm_host v2)" "host of v2 after migrate"
job_alive "$job"
drain "$first"
drained_under_job "$first" "$job"
assert_eq "$second" "$(vm_host v2)" "host of v2, which had no reason to move"
assert_match "^($second|$third)$" "$(vm_host v1)" "host of v1"
one_copy_each
wait_job_end "$job" 150
check_ring "$job"
