-- job_submit.lua: sends --symvirt jobs to VM nodes of their class, keeps all others away from them. Manual: symvirt-job-submit(7).
--
-- A site that has a job_submit.lua of its own loads this file from it (dofile) and calls symvirt_job_submit and symvirt_job_modify
-- first, returning what they return unless it is slurm.SUCCESS.
--
-- Runs inside slurmctld. A mistake in here must not keep ordinary jobs from running (everything is under pcall), and must not let a job
-- that asked for VMs run on a bare host (that job is refused then). Lua 5.1 to 5.4.

symvirt_config = {
  vm_partition = "vm",
  classes = { "standard" },    -- as in symvirtd.toml; each is a Feature of its VM nodes in slurm.conf
  default_class = "standard",  -- --symvirt without a name
}

local function refuse(text, ...)
  slurm.log_user("symvirt: %s", string.format(text, ...))
  return slurm.ERROR
end

-- What the plugin decided in the user's command: "NAME=value" strings. A plain list, not a sequence: Slurm counts from 0.
local function spank_variables(job_desc)
  local found = {}
  local list = job_desc.spank_job_env
  if type(list) ~= "table" then return found end
  for _, entry in pairs(list) do
    local name, value = string.match(tostring(entry), "^([%w_]+)=(.*)$")
    if name then found[name] = value end
  end
  return found
end

-- Class as the user gave it ("default" when none was named), or nil for jobs that did not ask.
local function asked_class(variables)
  local value = variables.SYMVIRT or variables._SLURM_SPANK_OPTION_symvirt_symvirt
  if value == nil or value == "0" then return nil end
  if value == "" or value == "1" or value == "(null)" then return "default" end
  return value
end

local function partitions(text)
  local list = {}
  for name in string.gmatch(text or "", "[^,%s]+") do list[#list + 1] = name end
  return list
end

local function default_partition(part_list)
  for name, part in pairs(part_list or {}) do
    if part.flag_default == 1 then return part.name or name end
  end
  return nil
end

local function contains(list, wanted)
  for _, item in ipairs(list) do
    if item == wanted then return true end
  end
  return false
end

local function add_feature(features, class)
  if features == nil or features == "" then return class end
  for word in string.gmatch(features, "[^&|,()%[%]*]+") do
    if word == class and not string.find(features, "[|,%[]") then return features end
  end
  -- "&" binds all of it only when the rest has no alternatives.
  if string.find(features, "[|,]") then features = "(" .. features .. ")" end
  return features .. "&" .. class
end

-- The plugin has checked both in the user's command; who speaks to slurmctld by itself has not.
local function bad_policy(variables)
  local ft, timeout = variables.SYMVIRT_FT or "", variables.SYMVIRT_QUIESCE_TIMEOUT or ""
  if ft ~= "" and ft ~= "none" and ft ~= "proactive" then
    return string.format("--symvirt-ft=%s: valid are none and proactive", ft)
  end
  local seconds = string.match(timeout, "^%d+$") and tonumber(timeout)
  if timeout ~= "" and (not seconds or seconds < 1 or seconds > 3600) then
    return string.format("--symvirt-quiesce-timeout=%s: not a number of seconds between 1 and 3600", timeout)
  end
  return nil
end

local function submit(job_desc, part_list)
  local config = symvirt_config
  local variables = spank_variables(job_desc)
  local class = asked_class(variables)
  local wanted = partitions(job_desc.partition)

  if class == nil then
    if #wanted == 0 then wanted = partitions(default_partition(part_list)) end
    if contains(wanted, config.vm_partition) then
      return refuse("partition %s runs jobs in VMs that move away from failing hosts: "
        .. "submit with --symvirt, or choose another partition with -p", config.vm_partition)
    end
    return slurm.SUCCESS
  end

  if class == "default" then class = config.default_class end
  if not contains(config.classes, class) then
    return refuse("--symvirt=%s: there is no such VM class here; there %s: %s", class, #config.classes == 1 and "is" or "are",
      table.concat(config.classes, ", "))
  end
  local wrong = bad_policy(variables)
  if wrong then return refuse("%s", wrong) end
  for _, name in ipairs(wanted) do
    if name ~= config.vm_partition then
      return refuse("--symvirt jobs run in partition %s, not in %s: leave out -p (or SBATCH_PARTITION), or leave out --symvirt",
        config.vm_partition, name)
    end
  end
  job_desc.partition = config.vm_partition
  job_desc.features = add_feature(job_desc.features, class)

  -- symvirtd reads this; users cannot write it.
  local note = "symvirt: class=" .. class
  if variables.SYMVIRT_FT and variables.SYMVIRT_FT ~= "" then note = note .. " ft=" .. variables.SYMVIRT_FT end
  if variables.SYMVIRT_QUIESCE_TIMEOUT and variables.SYMVIRT_QUIESCE_TIMEOUT ~= "" then
    note = note .. " quiesce_timeout=" .. variables.SYMVIRT_QUIESCE_TIMEOUT
  end
  local before = job_desc.admin_comment
  if before == nil or before == "" then
    job_desc.admin_comment = note
  else
    job_desc.admin_comment = before .. "; " .. note
  end
  return slurm.SUCCESS
end

-- A job stays what it was submitted as.
local function modify(job_desc, job_rec)
  local vm = symvirt_config.vm_partition
  local wanted = partitions(job_desc.partition)
  if #wanted == 0 then return slurm.SUCCESS end
  local was = contains(partitions(job_rec.partition), vm)
  for _, name in ipairs(wanted) do
    if was and name ~= vm then
      return refuse("job %s was submitted with --symvirt and stays in partition %s: submit it again for %s",
        tostring(job_rec.job_id), vm, name)
    end
    if not was and name == vm then
      return refuse("job %s was submitted without --symvirt and cannot run in partition %s: submit it again", tostring(job_rec.job_id), vm)
    end
  end
  return slurm.SUCCESS
end

-- The last line of defence, so simple that it has nothing to fail with.
local function asked_at_all(job_desc)
  local list = job_desc.spank_job_env
  if type(list) ~= "table" then return false end
  for _, entry in pairs(list) do
    if type(entry) == "string" and string.find(entry, "SYMVIRT=.", 1) == 1 then return true end
  end
  return false
end

function symvirt_job_submit(job_desc, part_list, submit_uid)
  local ok, result = pcall(submit, job_desc, part_list)
  if ok then return result end
  slurm.log_info("job_submit.lua: symvirt: a mistake in the script, job of uid %s: %s", tostring(submit_uid), tostring(result))
  local known, asked = pcall(asked_at_all, job_desc)
  if known and asked then
    return refuse("--symvirt jobs cannot be accepted now, because of a mistake in job_submit.lua: tell your administrator")
  end
  return slurm.SUCCESS
end

function symvirt_job_modify(job_desc, job_rec, part_list, modify_uid)
  local ok, result = pcall(modify, job_desc, job_rec)
  if ok then return result end
  slurm.log_info("job_submit.lua: symvirt: a mistake in the script, change by uid %s: %s", tostring(modify_uid), tostring(result))
  return slurm.SUCCESS
end

slurm_job_submit = symvirt_job_submit
slurm_job_modify = symvirt_job_modify

return slurm.SUCCESS
