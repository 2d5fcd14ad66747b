#!/bin/bash
# Soft-RoCE in one guest, brought to rest and resumed again and again at random moments: first under a stress program that uses all of verbs
# and checks every byte ($CYCLES times, or 30), then under perftest's programs, the ping-pongs and UCX's, each of which must end well.
# deadline: 600
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

install -m 755 "$BUILD/node-helper/protocol/rpc_call" "$MC_DIR/lib/rpc_call"
rm -f "$HOME_DIR/verbs_stress" "$HOME_DIR/cycles.sh" "$HOME_DIR/programs.sh" "$HOME_DIR/holders.sh" # the guests may know older ones
install -o 2000 -g 2000 -m 755 "$BUILD/tests/verbs/verbs_stress" "$HOME_DIR/verbs_stress"
cat > "$HOME_DIR/cycles.sh" <<'S'
#!/bin/bash
address=10.78.0.$((100 + ${SLURMD_NODENAME#v})) name=cycles-$SLURM_JOB_ID
one() { srun --overlap --overcommit -n1 --mpi=pmix "$@"; }
touch "$name.begun"
for rank in 0 1; do
  one ./verbs_stress --rank $rank --device rxe_eth0 --gid-index 1 --rc 4 --uc 1 --ud 1 --patience 60 --until "/tmp/$name.stop" &
done
wait
one ./programs.sh "$address" > "$name.programs" 2>&1
touch "$name.over"
S
# One after the other, server and client in this guest: "NAME ... rc=0".
cat > "$HOME_DIR/programs.sh" <<'S'
#!/bin/bash
address=$1 port=19000
pair() { # pair PROGRAM ARG...
  local rc
  ((port++))
  "$@" -p $port >server.$SLURM_JOB_ID 2>&1 &
  for ((i = 0; i < 400; i++)); do ! ss -Hltn "sport = :$port" | grep -q . || break; sleep 0.05; done
  timeout 90 "$@" -p $port "$address" >client.$SLURM_JOB_ID 2>&1
  rc=$?
  wait $! || rc=$?
  echo "$* rc=$rc"
  [ $rc = 0 ] || cat server.$SLURM_JOB_ID client.$SLURM_JOB_ID
}
for program in ib_send ib_write ib_read ib_atomic; do
  pair ${program}_lat -d rxe_eth0 -x 1 -n 1000
  pair ${program}_bw -d rxe_eth0 -x 1 -n 500
done
for events in '' -e; do
  pair ibv_rc_pingpong -d rxe_eth0 -g 1 -c -n 500 $events
  pair ibv_srq_pingpong -d rxe_eth0 -g 1 -q 4 -n 500 $events
  pair ibv_ud_pingpong -d rxe_eth0 -g 1 -n 500 $events
done
# Left alone, UCX would take shared memory. It registers memory that is unmapped later, and gives the registration back at the end.
export UCX_TLS=rc_v,ud_v,self UCX_NET_DEVICES=rxe_eth0:1
pair ucx_perftest -t tag_lat -n 100
pair ucx_perftest -t tag_bw -s 100000 -n 300
S
# Who has a device or a completion channel open: by descriptors, as the kernel's list of queue pairs is not complete.
cat > "$HOME_DIR/holders.sh" <<'S'
#!/bin/bash
find /proc/[0-9]*/fd '(' -lname '*/uverbs*' -o -lname '*infinibandevent*' ')' -printf '%p %l\n' 2>/dev/null
true # processes end meanwhile
S
chmod 755 "$HOME_DIR/cycles.sh" "$HOME_DIR/programs.sh" "$HOME_DIR/holders.sh"

job=$(user sbatch --parsable -N1 -n1 -J cycles -o "cycles-%j.out" --symvirt=rdma cycles.sh)
name=$HOME_DIR/cycles-$job
wait_for 150 "job $job to begin" test -e "$name.begun"
vm=$(job_field "$job" NodeList)
held() { "$MC" exec "$vm" rdma res show qp | grep -q " pid "; }
# cycles FIRST EPOCH ARGUMENT...: of cycle.py. At rest nobody may hold the device.
cycles() {
  python3 "$E2E/cycle.py" --vm "$vm" --host "$(vm_host "$vm")" --job "$job" --epoch "$@" --holders "$MC exec $vm /home/mpiuser/holders.sh" \
    --call "$MC" exec ctl "$MC_DIR/lib/rpc_call" || fail "a cycle failed; output of the job: $(tail -n 20 "$name".*)"
}
wait_for 60 "the stress program to have queue pairs" held
[ -n "$("$MC" exec "$vm" /home/mpiuser/holders.sh)" ] || fail "holders.sh does not see the stress program"
stress=$(cycles 1000000000 --cycles "${CYCLES:-30}")
"$MC" exec "$vm" touch "/tmp/cycles-$job.stop" # not in the home: NFS clients may see a new file there only after a minute
wait_for 60 "the stress program to end" test -e "$name.programs"
assert_eq 2 "$(grep -cE '^rank [01]: all right' "$name.out")" "ranks of the stress program that are right ($name.out)"
say "stress program: $stress; $(grep '^rank' "$name.out" | paste -sd ';')"
programs=$(cycles 2000000000 --until "$name.over" --cycles 1000)
wait_job_end "$job" 60
if grep 'rc=[1-9]' "$name.programs"; then fail "a program did not end well: $name.programs"; fi
assert_eq 16 "$(grep -c 'rc=0$' "$name.programs")" "programs that ended well ($name.programs)"
say "programs: $programs"
