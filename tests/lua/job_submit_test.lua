-- lua5.3 tests/lua/job_submit_test.lua PATH/job_submit.lua: each case is one job as slurmctld shows it to the script.
local script = assert(arg[1], "usage: job_submit_test.lua job_submit.lua")

local said, logged
slurm = {
  SUCCESS = 0,
  ERROR = -1,
  log_user = function(text, ...) said = string.format(text, ...) end,
  log_info = function(text, ...) logged = string.format(text, ...) end,
}
dofile(script)
symvirt_config = { vm_partition = "vm", classes = { "standard", "ib" }, default_class = "standard" }

local parts = { hosts = { name = "hosts", flag_default = 0 }, vm = { name = "vm", flag_default = 1 } }
local failures, cases = 0, 0
local function check(what, expected, got)
  if expected ~= got then
    failures = failures + 1
    print(string.format("FAIL %s: expected %s, got %s", what, tostring(expected), tostring(got)))
  end
end
-- As Slurm gives it: counted from 0.
local function spank(...)
  local list, n = {}, 0
  for _, entry in ipairs({ ... }) do
    list[n] = entry
    n = n + 1
  end
  return list
end
local function submit(what, job, expected)
  cases = cases + 1
  said, logged = nil, nil
  check(what .. ": result", expected, slurm_job_submit(job, parts, 1000))
  return job
end
local function says(what, pattern)
  check(what .. ": says /" .. pattern .. "/, said: " .. tostring(said), true, said ~= nil and said:find(pattern) ~= nil)
end

local j = submit("plain job on hosts", { partition = "hosts" }, 0)
check("untouched", nil, j.features)
check("untouched", nil, j.admin_comment)
submit("plain job for the default partition, which is vm", {}, -1)
says("default partition", "%-%-symvirt")
submit("plain job for vm among others", { partition = "hosts,vm" }, -1)
j = submit("--no-symvirt", { partition = "hosts", spank_job_env = spank("SYMVIRT=0") }, 0)
check("untouched", "hosts", j.partition)

j = submit("--symvirt", { spank_job_env = spank("_SLURM_SPANK_OPTION_symvirt_symvirt=default", "SYMVIRT=default", "SYMVIRT_FT=proactive") }, 0)
check("partition", "vm", j.partition)
check("features", "standard", j.features)
check("comment", "symvirt: class=standard ft=proactive", j.admin_comment)
j = submit("class, ft, time-out", { spank_job_env = spank("SYMVIRT=ib", "SYMVIRT_FT=none", "SYMVIRT_QUIESCE_TIMEOUT=77") }, 0)
check("features", "ib", j.features)
check("comment", "symvirt: class=ib ft=none quiesce_timeout=77", j.admin_comment)
j = submit("option only, no value", { spank_job_env = spank("_SLURM_SPANK_OPTION_symvirt_symvirt=(null)") }, 0)
check("features", "standard", j.features)
j = submit("other plugins' variables", { spank_job_env = spank("OTHER=1", "SYMVIRT=ib", "_SLURM_SPANK_OPTION_x_y=z=1") }, 0)
check("features", "ib", j.features)

submit("unknown class", { spank_job_env = spank("SYMVIRT=gold") }, -1)
says("unknown class", "gold.*standard, ib")
submit("explicit host partition", { partition = "hosts", spank_job_env = spank("SYMVIRT=ib") }, -1)
says("host partition", "not in hosts")
submit("vm and another partition", { partition = "vm,hosts", spank_job_env = spank("SYMVIRT=ib") }, -1)
j = submit("explicit vm", { partition = "vm", spank_job_env = spank("SYMVIRT=ib") }, 0)

for given, want in pairs({
  ["big"] = "big&ib", ["a|b"] = "(a|b)&ib", ["ib"] = "ib", ["a&ib"] = "a&ib", ["a|ib"] = "(a|ib)&ib", ["ibx"] = "ibx&ib", ["ib2"] = "ib2&ib", ["ib*2"] = "ib*2",
}) do
  j = submit("constraint " .. given, { features = given, spank_job_env = spank("SYMVIRT=ib") }, 0)
  check("constraint " .. given, want, j.features)
end
j = submit("comment of an administrator", { admin_comment = "mine", spank_job_env = spank("SYMVIRT=ib") }, 0)
check("comment", "mine; symvirt: class=ib", j.admin_comment)

-- Not through the plugin, which would have refused these.
for _, bad in ipairs({ "SYMVIRT_FT=often", "SYMVIRT_QUIESCE_TIMEOUT=0", "SYMVIRT_QUIESCE_TIMEOUT=3601", "SYMVIRT_QUIESCE_TIMEOUT=5s",
  "SYMVIRT_QUIESCE_TIMEOUT=-1", "SYMVIRT_QUIESCE_TIMEOUT=99999999999999999999" }) do
  j = submit(bad, { spank_job_env = spank("SYMVIRT=ib", bad) }, -1)
  says(bad, bad:find("FT") and "none and proactive" or "between 1 and 3600")
  check(bad .. ": untouched", nil, j.partition)
end
submit("a % in a name", { spank_job_env = spank("SYMVIRT=gold%s%d") }, -1)
says("a % in a name", "gold%%s%%d: there is no such VM class")

-- A mistake in the site's part: ordinary jobs run, --symvirt jobs are refused.
local good = symvirt_config
symvirt_config = nil
submit("broken, plain job", { partition = "hosts" }, 0)
check("broken is logged", true, logged ~= nil)
submit("broken, --symvirt", { spank_job_env = spank("SYMVIRT=ib") }, -1)
says("broken, --symvirt", "administrator")
symvirt_config = good

local function modify(what, desc, rec, expected)
  cases = cases + 1
  said = nil
  check(what, expected, slurm_job_modify(desc, rec, parts, 0))
end
modify("time limit", { time_limit = 5 }, { partition = "vm", job_id = 7 }, 0)
modify("out of vm", { partition = "hosts" }, { partition = "vm", job_id = 7 }, -1)
says("out of vm", "job 7")
modify("into vm", { partition = "vm" }, { partition = "hosts", job_id = 7 }, -1)
modify("same", { partition = "vm" }, { partition = "vm", job_id = 7 }, 0)

print(string.format("%d cases, %d failures", cases, failures))
os.exit(failures == 0 and 0 or 1)
