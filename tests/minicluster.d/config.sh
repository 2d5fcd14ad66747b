# shellcheck shell=bash
# The cluster's configuration: slurm-conf/ as a site would use it, with this cluster's values. Sourced by tests/minicluster.

# What @NAME@ stands for in slurm-conf/*.in.
site_values() {
  cat <<EOF
CLUSTER=symvirt-mini
CONTROL=ctl
PREFIX=/opt/symvirt
HOST_NODES=hv[1-3]
HOST_CPUS=4
HOST_MEMORY_MB=2000
HOST_DEVICES=2
HOST_PARTITION=hosts
VM_NODES=v[1-2]
VM_CPUS=2
VM_MEMORY_MB=400
VM_PARTITION=vm
VM_IDLE_SECONDS=100000
HEALTH_SECONDS=10
SITE_DOMAIN_TYPE=$MC_DOMAIN_TYPE
SITE_IMAGE=$MC_IMAGE
SITE_DISK=$MC_DIR/site.img
SITE_OVERLAYS=$MC_DIR/vms
SITE_MGMT_NET=$MC_MGT
SITE_FABRIC_NET=$MC_FAB
SITE_START_SLURMD="/site/start-slurmd"
SITE_PIN_CPUS=false
SITE_MIGRATE_UNSAFE=true
SITE_FENCE_COMMAND="$MC_DIR/lib/fence", "{host}"
CTL=ctl
CTL_ADDRESS=$MC_MGT.10
EOF
}

# fill FILE.in TARGET: replaces the names above; other @...@ stay (symvirtd fills them in for each VM).
fill() {
  local script
  script=$(site_values | sed -E 's/[|&\\]/\\&/g; s/^([A-Z_]+)=(.*)$/s|@\1@|\2|g/')
  sed "$script" "$1" > "$2"
}

write_common() {
  local common=$MC_DIR/etc/common m
  mkdir -p "$common/munge" "$common/ganesha" "$MC_DIR/etc/slurm" "$MC_DIR/etc/symvirt"
  {
    echo "127.0.0.1 localhost"
    for m in ctl "${MC_HOSTS[@]}" "${MC_VMS[@]}"; do echo "$(address_of "$m") $m"; done
  } > "$common/hosts"
  # No name outside the cluster can be resolved in it; without this a look-up of one waits for seconds.
  rm -f "$common/resolv.conf"
  : > "$common/resolv.conf"
  printf '%s\n' 'passwd: files' 'group: files' 'shadow: files' 'hosts: files' 'services: files' 'protocols: files' > "$common/nsswitch.conf"
  [ -s "$common/munge/munge.key" ] || dd if=/dev/urandom of="$common/munge/munge.key" bs=128 count=1 status=none
  chmod 600 "$common/munge/munge.key"
  echo 'mpiuser:x:2000:2000:MPI user:/home/mpiuser:/bin/bash' > "$MC_DIR/etc/passwd.add"
  echo 'mpiuser:x:2000:' > "$MC_DIR/etc/group.add"
  install -d -o 2000 -g 2000 "$MC_DIR/home/mpiuser"
  [ -s "$MC_DIR/id" ] || ssh-keygen -q -t ed25519 -N '' -C minicluster -f "$MC_DIR/id"
  write_ganesha > "$common/ganesha/ganesha.conf"
}

# NFS v4 only, so that neither portmapper nor lock manager is needed. No grace period: nobody reclaims locks here.
write_ganesha() {
  cat <<EOF
NFS_CORE_PARAM {
  Protocols = 4;
  Enable_NLM = false;
  Enable_RQUOTA = false;
  Bind_addr = $MC_MGT.10;
  NFS_Port = 2049;
  mount_path_pseudo = true;
}
NFSV4 {
  Graceless = true;
  RecoveryBackend = fs;
  Only_Numeric_Owners = true;
  Allow_Numeric_Owners = true;
}
EXPORT {
  Export_Id = 1;
  Path = /home;
  Pseudo = /home;
  Access_Type = RW;
  Squash = No_Root_Squash;
  SecType = sys;
  Protocols = 4;
  Transports = TCP;
  FSAL { Name = VFS; }
}
LOG { Default_Log_Level = WARN; }
EOF
}

write_slurm() {
  local conf=$MC_SOURCE/slurm-conf etc=$MC_DIR/etc/slurm f
  for f in slurm gres plugstack; do fill "$conf/$f.conf.in" "$etc/$f.conf"; done
  cp "$conf/cgroup.conf" "$conf/mpi.conf" "$etc/"
  [ ! -e "$conf/job_submit.lua" ] || cp "$conf/job_submit.lua" "$etc/"
  add_rdma_nodes
  drop_absent
}

# A second class, as an administrator adds one: "rdma", whose passthrough NIC carries soft-RoCE, on VM nodes of its own.
add_rdma_nodes() {
  local etc=$MC_DIR/etc/slurm
  sed -i -E -e 's/^(NodeName)=v\[1-2\](.*)Feature=symvirt,standard(.*)$/&\n\1=v[3-4]\2Feature=symvirt,rdma\3/' \
    -e '/^PartitionName=vm/s/Nodes=v\[1-2\]/Nodes=v[1-4]/' "$etc/slurm.conf"
  [ ! -e "$etc/job_submit.lua" ] || sed -i 's/classes = { "standard" }/classes = { "standard", "rdma" }/' "$etc/job_submit.lua"
}
add_rdma_class() {
  local etc=$MC_DIR/etc/symvirt
  # Numbers of a class's VMs begin with 1: other addresses than those of "standard" have to be given.
  sed -e 's/@INDEX+100@/@INDEX+102@/' -e 's/52:54:00:77:00:/52:54:00:77:01:/' "$etc/classes/standard.xml" > "$etc/classes/rdma.xml"
  sed -n '/^\[\[class\]\]/,$p' "$etc/symvirtd.toml" | sed -e 's/"standard"/"rdma"/' -e 's/"v\[1-2\]"/"v[3-4]"/' -e 's/standard\.xml/rdma.xml/' \
    -e 's/^quiesce = "tcp"/quiesce = "verbs"\nsoft_roce = true/' -e 's/52:54:00:78:00:/52:54:00:78:01:/' -e 's/{100+index}/{102+index}/' > "$etc/rdma.toml"
  cat "$etc/rdma.toml" >> "$etc/symvirtd.toml"
  rm "$etc/rdma.toml"
}

# Parts of SymVirt that this build does not have are left out of Slurm's configuration: Slurm would drain nodes for them.
drop_absent() {
  local etc=$MC_DIR/etc/slurm opt=$MC_DIR/opt
  absent() { sed -i "s|^$2|# not in this build: &|" "$etc/$1"; }
  [ -e "$opt/lib/symvirt/spank_symvirt.so" ] || absent plugstack.conf optional
  [ -e "$opt/libexec/symvirt/symvirt-prolog" ] || absent slurm.conf Prolog=
  [ -e "$opt/libexec/symvirt/symvirt-health" ] || absent slurm.conf HealthCheck
  # Without the plugin nobody could say --symvirt, and job_submit.lua would refuse everybody.
  { [ -e "$etc/job_submit.lua" ] && [ -e "$opt/lib/symvirt/spank_symvirt.so" ]; } || absent slurm.conf JobSubmitPlugins=
  [ -e "$opt/libexec/symvirt/symvirt-resume" ] || sed -i -E 's#^(Resume|Suspend)Program=.*#\1Program=/bin/true#' "$etc/slurm.conf"
}

# libvirtd as a host's administrator sets it up for migration, without what namespaces do not have (cgroups, polkit, TLS).
write_libvirt() {
  local host=$1 d=$MC_DIR/etc/$1/libvirt n=${1#hv}
  mkdir -p "$d"
  cat > "$d/libvirtd.conf" <<EOF
listen_tls = 0
listen_tcp = 1
listen_addr = "$(address_of "$host")"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
host_uuid = "7700000$n-0000-4000-8000-00000000000$n"
log_filters = "1:qemu.qemu_migration 1:qemu.qemu_process 3:util.object 3:util.json 3:util.event"
log_outputs = "1:file:/var/log/libvirt/libvirtd.log"
keepalive_interval = 5
keepalive_count = 5
max_clients = 200
EOF
  cat > "$d/qemu.conf" <<EOF
security_driver = "none"
security_default_confined = 0
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
seccomp_sandbox = 0
stdio_handler = "file"
set_process_name = 1
migration_host = "$(address_of "$host")"
migration_address = "0.0.0.0"
save_image_format = "raw"
EOF
}

# Everything a VM node needs that is not in the image: our programs, keys, names. A second, read-only disk of each VM, made in a
# second, so that neither a new build nor a new key makes a new image.
write_site_disk() {
  local s=$MC_DIR/site size
  rm -rf "$s"
  mkdir -p "$s/etc/munge" "$s/etc/symvirt" "$s/opt-symvirt"
  cp -a "$MC_DIR/opt/." "$s/opt-symvirt/"
  cp "$MC_DIR"/etc/common/{hosts,nsswitch.conf,resolv.conf} "$s/etc/"
  cp -a "$MC_DIR/etc/common/munge/munge.key" "$s/etc/munge/"
  [ ! -e "$MC_DIR/etc/symvirt/guestd.toml" ] || cp "$MC_DIR/etc/symvirt/guestd.toml" "$s/etc/symvirt/"
  cp "$MC_DIR"/etc/{passwd,group}.add "$s/"
  cp "$MC_DIR/id.pub" "$s/authorized_keys"
  fill "$MC_SOURCE/tests/minicluster.d/guest-init" "$s/init"
  fill "$MC_SOURCE/tests/minicluster.d/guest-start-slurmd" "$s/start-slurmd"
  chmod 755 "$s/init" "$s/start-slurmd"
  chown -R 0:0 "$s"
  size=$(du -sm "$s" | cut -f1)
  rm -f "$MC_DIR/site.img.new"
  mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -m 0 -L symvirt-site -d "$s" "$MC_DIR/site.img.new" "$((size * 5 / 4 + 8))M" >/dev/null
  # A running VM keeps the file it has open.
  mv "$MC_DIR/site.img.new" "$MC_DIR/site.img"
}

# Configuration of SymVirt's own daemons, where slurm-conf/ has a template for it.
write_symvirt() {
  local template name
  mkdir -p "$MC_DIR/etc/symvirt/classes"
  for template in "$MC_SOURCE"/slurm-conf/*.toml.in "$MC_SOURCE"/slurm-conf/classes/*.in; do
    [ -e "$template" ] || continue
    name=${template#"$MC_SOURCE/slurm-conf/"}
    fill "$template" "$MC_DIR/etc/symvirt/${name%.in}"
  done
  add_rdma_class
}
