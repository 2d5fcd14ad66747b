#!/bin/bash
# Open MPI over UCX and verbs (soft-RoCE on the passthrough NIC): point to point of 1 B, 8 KB and 1 MB from several threads, collectives
# and one-sided calls, all under way while the VMs are evacuated five times in a row: both, one, the other, one, and both again.
# deadline: 480
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

VMS=(v3 v4)
RING_NAME=mix
install -o 2000 -g 2000 -m 755 "$BUILD/tests/e2e/mix" "$HOME_DIR/mix"
cat > "$HOME_DIR/mix.sh" <<'S'
#!/bin/bash
srun --mpi=pmix ./mix --seconds 400 --until mix-$SLURM_JOB_ID.stop --threads 2 --report 1 --json mix-$SLURM_JOB_ID.json
echo "rc=$?"
S
job=$(user sbatch --parsable -N2 -n4 --ntasks-per-node=2 -J mix -o "mix-%j.out" --symvirt=rdma mix.sh)
wait_ring_running "$job"
boots=$(for vm in "${VMS[@]}"; do on "$vm" cat /proc/sys/kernel/random/boot_id; done)
# Queue pairs that processes hold, and what went over the soft device since it was made.
queue_pairs() { on "$1" rdma res show qp | grep -c 'pid'; }
packets() { on "$1" bash -c 'cat /sys/class/infiniband/*/ports/1/hw_counters/sent_pkts'; }
assert_lt 3 "$(queue_pairs v3)" "queue pairs of the job in v3"

goes_on() { # goes_on WHAT
  job_alive "$job"
  one_copy_each
  say "$1: v3 on $(vm_host v3), v4 on $(vm_host v4), iteration $(ring_progress "$job")"
}
moves_alone() { # moves_alone VM
  local from
  from=$(vm_host "$1")
  ctl timeout 90 symvirtctl migrate "$1" >"$WORK/migrate-$1" 2>&1 || fail "migrate $1: $(cat "$WORK/migrate-$1")"
  [ "$(vm_host "$1")" != "$from" ] || fail "$1 is still on $from"
  goes_on "$1 moved"
}

first=$(vm_host v3)
drain "$first"
drained_under_job "$first" "$job"
goes_on "$first drained"
undrain "$first"
moves_alone v3
moves_alone v4
moves_alone v3
for vm in "${VMS[@]}"; do
  from=$(vm_host "$vm")
  [ "$(node_state "$from")" != drained ] || continue
  drain "$from"
  drained_under_job "$from" "$job"
  goes_on "$from drained"
  undrain "$from"
done
assert_eq "$boots" "$(for vm in "${VMS[@]}"; do on "$vm" cat /proc/sys/kernel/random/boot_id; done)" "boot ids"
for vm in "${VMS[@]}"; do assert_lt 100 "$(packets "$vm")" "packets over the device that $vm has now"; done
touch "$HOME_DIR/mix-$job.stop"
wait_job_end "$job" 150
assert_eq COMPLETED "$(job_state "$job")" "job $job ($(ring_out "$job"))"
assert_eq true "$(ring_field "$job" answers_correct)" "answers of job $job"
assert_eq 4 "$(grep -c '^rank .* ok ' "$(ring_out "$job")")" "ranks that report ok"
say "job $job: $(ring_field "$job" iterations) iterations, $(ring_field "$job" exchanges) exchanges, longest pause $(ring_field "$job" longest_pause_s) s"
