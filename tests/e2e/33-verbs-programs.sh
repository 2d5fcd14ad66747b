#!/bin/bash
# Plain verbs programs that know neither MPI nor PMIx, started by srun from a shell script: four pairs at once, of ping-pongs with events and
# with a shared receive queue, RDMA writes and atomics. Their VMs are moved, one and then both: all of them end as if nothing had been.
# deadline: 600
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

VMS=(v3 v4)
programs=(ibv_rc_pingpong ibv_srq_pingpong ib_write_bw ib_atomic_lat)
rm -f "$HOME_DIR/pair.sh" "$HOME_DIR/verbs.sh" # the guests may know older ones
cat > "$HOME_DIR/pair.sh" <<'S'
#!/bin/bash
# pair.sh ADDRESS PORT PROGRAM ARG...: rank 0 serves, rank 1 is its client once it listens
address=$1 port=$2 ready=verbs-$SLURM_JOB_ID-$2.ready
shift 2
if [ "$SLURM_PROCID" = 1 ]; then
  until [ -e "$ready" ]; do sleep 0.2; done
  exec "$@" -p "$port" "$address"
fi
"$@" -p "$port" &
until ss -Hltn "sport = :$port" | grep -q .; do sleep 0.2; done
touch "$ready"
wait $!
S
cat > "$HOME_DIR/verbs.sh" <<'S'
#!/bin/bash
# The first node's address on the passthrough network.
address=10.78.0.$((100 + ${SLURMD_NODENAME#v})) port=18515
try() {
  srun --overlap --overcommit -N2 -n2 --ntasks-per-node=1 --mpi=pmix ./pair.sh "$address" $port "$@" > "verbs-$SLURM_JOB_ID-$1.out" 2>&1
  echo "$1 rc=$?"
}
try ibv_rc_pingpong -d rxe_eth0 -g 1 -e -c -n 4000 &
((port++))
try ibv_srq_pingpong -d rxe_eth0 -g 1 -q 4 -n 6000 &
((port++))
try ib_write_bw -d rxe_eth0 -x 1 -n 12000 &
((port++))
try ib_atomic_lat -d rxe_eth0 -x 1 -n 30000 &
wait
S
chmod 755 "$HOME_DIR/pair.sh" "$HOME_DIR/verbs.sh"
job=$(user sbatch --parsable -N2 -J verbs -o "verbs-%j.out" --symvirt=rdma verbs.sh)
# Processes that have queue pairs. (Their names do not count: after a move a thread of the library's made them.)
running() { on "$1" rdma res show qp | grep -o ' pid [0-9]*' | sort -u | wc -l; }
all_run() { [ "$(running v3)" = ${#programs[@]} ] && [ "$(running v4)" = ${#programs[@]} ]; }
wait_for 150 "four programs to run in each VM (see $HOME_DIR/verbs-$job*.out)" all_run
say "v3 on $(vm_host v3), v4 on $(vm_host v4); programs: ${programs[*]}"

from=$(vm_host v3)
ctl timeout 90 symvirtctl migrate v3 >"$WORK/migrate" 2>&1 || fail "migrate v3: $(cat "$WORK/migrate")"
[ "$(vm_host v3)" != "$from" ] || fail "v3 is still on $from"
all_run || fail "not all programs were still running after the move: the test shows too little"
for vm in "${VMS[@]}"; do
  from=$(vm_host "$vm")
  [ "$(node_state "$from")" != drained ] || continue
  drain "$from"
  wait_for 120 "$from to be drained (is $(node_state "$from"))" node_is "$from" drained
  undrain "$from"
done
one_copy_each
say "v3 on $(vm_host v3), v4 on $(vm_host v4); still running: $(running v3), $(running v4)"
wait_job_end "$job" 300
for program in "${programs[@]}"; do
  grep -qx "$program rc=0" "$HOME_DIR/verbs-$job.out" ||
    fail "$program: $(cat "$HOME_DIR/verbs-$job.out" "$HOME_DIR/verbs-$job-$program.out")"
done
say "$(grep -h 'iters in' "$HOME_DIR"/verbs-"$job"-*.out | sort -u | head -n 4 | paste -sd ';')"
