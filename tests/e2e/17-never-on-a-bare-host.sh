#!/bin/bash
# A --symvirt job never runs on a bare host: refused when it is submitted, and again in the step should that be got round.
# deadline: 150
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

assert_refused user sbatch --symvirt -p hosts --wrap "touch ran-on-bare-host"
say "sbatch: $REFUSAL"
assert_refused user timeout 60 srun --symvirt -p hosts -N1 touch ran-on-bare-host
say "srun: $REFUSAL"
assert_refused user timeout 60 salloc --symvirt -p hosts -N1 srun touch ran-on-bare-host

# Without the submission filter the plugin refuses by itself.
conf=$MC_DIR/etc/slurm/slurm.conf
restore() {
  sed -i 's/^#off#JobSubmitPlugins/JobSubmitPlugins/' "$conf"
  ctl scontrol reconfigure
}
trap restore EXIT
sed -i 's/^JobSubmitPlugins/#off#JobSubmitPlugins/' "$conf"
ctl scontrol reconfigure
assert_refused user timeout 60 srun --symvirt -p hosts -N1 touch ran-on-bare-host
say "srun, without the submission filter: $REFUSAL"
for h in "${HOSTS[@]}"; do
  [ ! -e "$HOME_DIR/ran-on-bare-host" ] || fail "it ran"
  on "$h" test ! -e /home/mpiuser/ran-on-bare-host || fail "it ran on $h"
done
