#!/bin/bash
# Three evacuations of one job: away, further, and back to the first host.
# deadline: 420
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

job=$(submit_ring 100 --symvirt)
wait_ring_running "$job"
first=$(vm_host v1)
drain "$first"
drained_under_job "$first" "$job"
second=$(vm_host v1)
drain "$second"
drained_under_job "$second" "$job"
third=$(vm_host v1)
assert_eq "" "$(printf '%s\n' "$first" "$second" "$third" | sort | uniq -d)" "hosts used twice"
undrain "$first"
drain "$third"
drained_under_job "$third" "$job"
assert_eq "$first" "$(vm_host v1)" "host of v1 at the end"
one_copy_each
wait_job_end "$job" 180
check_ring "$job"
