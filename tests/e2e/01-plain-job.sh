#!/bin/bash
# A job that did not ask for SymVirt runs as ever while all our daemons are stopped and their configuration is broken.
# deadline: 90
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

restore() {
  local m f
  for f in "$MC_DIR"/etc/symvirt/*.kept; do [ ! -e "$f" ] || mv "$f" "${f%.kept}"; done
  "$MC" service ctl start symvirtd
  for m in "${HOSTS[@]}"; do "$MC" service "$m" start symvirt-noded; done
}
trap restore EXIT

"$MC" service ctl stop symvirtd
for h in "${HOSTS[@]}"; do "$MC" service "$h" stop symvirt-noded; done
for f in "$MC_DIR"/etc/symvirt/*.toml; do
  mv "$f" "$f.kept"
  echo 'this is ] not TOML' > "$f"
done

install -o 2000 -g 2000 -m 755 "$BUILD/tests/e2e/ring" "$HOME_DIR/ring"
out=$(OMPI_MCA_btl=tcp,self timeout 60 "$MC" exec --user mpiuser ctl srun -p hosts -N2 -n2 --mpi=pmix ./ring --iterations 50 --bytes 64)
say "$out"
assert_match '"answers_correct":true' "$out"
assert_eq 2 "$(grep -c '^rank . ok iterations=50 ' <<<"$out")" "ranks that report ok"
# shellcheck disable=SC2016  # expanded in the job
user bash -c 'timeout 30 sbatch -W -p hosts -o plain.out --wrap "echo ran on \$SLURMD_NODENAME"'
assert_match '^ran on hv[1-3]$' "$(cat "$HOME_DIR/plain.out")"
