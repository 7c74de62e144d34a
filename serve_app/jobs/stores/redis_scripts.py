"""The changes that Redis makes atomically, as Lua scripts.

Keys, after the store's prefix:
    open            hash: id of each open job → its entry "STATE OWNER"
    job:ID          hash: spec, record, owner, retention_s, fingerprint, repeat (the full key below, or empty),
                    change and adoption (the calls that made the last ones)
    pictures:ID     the sets, as safetensors
    outcomes:ID     hash: INDEX → the outcome without its picture, INDEX:picture → the picture
    repeat:KEY      id of the job that the repeat key belongs to
    lease:OWNER     exists while the lease runs; its duration in milliseconds
    staged:CALL     pictures whose job is not stored yet

redis-py sends a command again when the connection broke before the answer. So each call of a script has a name, and a
script that has run for it already returns the same result.
"""

_COMMON = """
local prefix = ARGV[1]
local open = prefix .. 'open'
local function key(kind, name) return prefix .. kind .. ':' .. name end

-- List an open job and keep it; any other expires in left_ms.
local function settle(id, entry, left_ms)
  local job = key('job', id)
  local names = {job, key('pictures', id), key('outcomes', id)}
  local repeated = redis.call('HGET', job, 'repeat')
  if repeated and repeated ~= '' then names[4] = repeated end
  if left_ms == '' then
    redis.call('HSET', open, id, entry)
    for _, name in ipairs(names) do redis.call('PERSIST', name) end
  else
    redis.call('HDEL', open, id)
    for _, name in ipairs(names) do redis.call('PEXPIRE', name, left_ms) end
  end
end
"""

ADD = (
    _COMMON
    + """
local staged, id, repeated, entry, left_ms = unpack(ARGV, 2, 6)
local known = id
if redis.call('EXISTS', key('job', id)) == 0 then
  known = repeated ~= '' and redis.call('GET', repeated)
end
if known and redis.call('EXISTS', key('job', known)) == 1 then
  redis.call('DEL', staged)
  return {known, redis.call('HGET', key('job', known), 'fingerprint')}
end
redis.call('RENAME', staged, key('pictures', id))
redis.call('HSET', key('job', id), 'repeat', repeated, unpack(ARGV, 7))
if repeated ~= '' then redis.call('SET', repeated, id) end
local fingerprint = redis.call('HGET', key('job', id), 'fingerprint')
settle(id, entry, left_ms)
return {id, fingerprint}
"""
)
"""Store a job of staged pictures and the fields that follow. Returns the id and the fingerprint of the stored job."""

ADD_OUTCOME = (
    _COMMON
    + """
local id, waiting, running, index, rest, picture = unpack(ARGV, 2)
local entry = redis.call('HGET', open, id)
if entry ~= waiting and entry ~= running then return 0 end
redis.call('HSET', key('outcomes', id), index, rest, index .. ':picture', picture)
return 1
"""
)
"""Store an outcome of a job whose entry is one of two. Returns whether it was stored."""

CHANGE = (
    _COMMON
    + """
local id, call, old_record, old_owner, record, owner, entry, left_ms, afresh = unpack(ARGV, 2)
local job = key('job', id)
local stored = redis.call('HMGET', job, 'change', 'record', 'owner')
if stored[1] == call then return 1 end
if (stored[2] or '') ~= old_record or stored[3] ~= old_owner then return 0 end
redis.call('HSET', job, 'change', call, 'record', record, 'owner', owner)
if afresh == '1' then redis.call('DEL', key('outcomes', id)) end
settle(id, entry, left_ms)
return 1
"""
)
"""Replace record and owner if they still are the expected ones. Returns whether they were."""

ADOPT = (
    _COMMON
    + """
local owner, call = ARGV[2], ARGV[3]

-- A lease with more time left than its duration is from before the server's clock was set back.
local function is_over(lease)
  local left_ms, lease_ms = redis.call('PTTL', lease), tonumber(redis.call('GET', lease) or '')
  return left_ms == -2 or (lease_ms ~= nil and left_ms > lease_ms)
end

local entries = redis.call('HGETALL', open)
local adopted = {}
for i = 1, #entries, 2 do
  local id = entries[i]
  local job = key('job', id)
  local state, holder = string.match(entries[i + 1], '^(%S+) (.*)$')
  if holder == owner then
    if redis.call('HGET', job, 'adoption') == call then table.insert(adopted, id) end
  elseif is_over(key('lease', holder)) then
    redis.call('HSET', open, id, state .. ' ' .. owner)
    redis.call('HSET', job, 'owner', owner, 'adoption', call)
    table.insert(adopted, id)
  end
end
return adopted
"""
)
"""Make one owner the owner of all open jobs whose owner has no lease. Returns their ids."""
