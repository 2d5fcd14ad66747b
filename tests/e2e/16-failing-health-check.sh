#!/bin/bash
# Nobody drains anything: a site's health check begins to fail on the host under a job, and that alone evacuates it.
# deadline: 300
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

checks=$MC_DIR/etc/symvirt/health.d # all machines see it, so the check asks where it is
restore() { rm -f "$checks/fan"; }
trap restore EXIT

job=$(submit_ring 60 --symvirt)
wait_ring_running "$job"
host=$(vm_host v1)
mkdir -p "$checks"
cat > "$checks/.fan" <<C
#!/bin/sh
[ "\$SLURMD_NODENAME" = $host ] || exit 0
echo "fan 3 stands"
exit 1
C
chmod 755 "$checks/.fan"
mv "$checks/.fan" "$checks/fan"
say "health check of $host fails from now on"
drained_under_job "$host" "$job"
assert_eq "symvirt: fan: fan 3 stands" "$(node_reason "$host")" "reason of $host"
for h in $(other_hosts "$host"); do assert_eq "" "$(node_reason "$h")" "reason of $h"; done
one_copy_each
wait_job_end "$job" 150
check_ring "$job"
restore
undrain "$host"
