"""What must happen in Redis at once, in Lua.

Keys, after the store's prefix:
    open            hash: id of each open job → "STATE OWNER"
    job:ID          hash: spec, record, owner, retention_s, fingerprint, repeat (the full key below, or empty),
                    change and adoption (the calls that made the last ones)
    pictures:ID     the sets, as safetensors
    outcomes:ID     hash: INDEX → the outcome without its picture, INDEX:picture → the picture
    repeat:KEY      id of the job that the repeat key belongs to
    lease:OWNER     there as long as the owner lives; its duration in milliseconds
    staged:CALL     pictures on their way in

redis-py sends a command again when the connection broke before the answer. So each script knows a call that it has
answered already by the call's name, and gives the same answer.
"""

_COMMON = """
local prefix = ARGV[1]
local open = prefix .. 'open'
local function key(kind, name) return prefix .. kind .. ':' .. name end

-- An open job is listed and kept; any other has so many milliseconds left.
local function settle(id, standing, left_ms)
  local job = key('job', id)
  local names = {job, key('pictures', id), key('outcomes', id)}
  local repeated = redis.call('HGET', job, 'repeat')
  if repeated and repeated ~= '' then names[4] = repeated end
  if left_ms == '' then
    redis.call('HSET', open, id, standing)
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
local staged, id, repeated, standing, left_ms = unpack(ARGV, 2, 6)
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
settle(id, standing, left_ms)
return {id, fingerprint}
"""
)
"""Make a job of staged pictures and the fields that follow. Gives the id and the fingerprint of the stored job."""

ADD_OUTCOME = (
    _COMMON
    + """
local id, waiting, running, index, rest, picture = unpack(ARGV, 2)
local standing = redis.call('HGET', open, id)
if standing ~= waiting and standing ~= running then return 0 end
redis.call('HSET', key('outcomes', id), index, rest, index .. ':picture', picture)
return 1
"""
)
"""Store an outcome of a job that stands in one of two ways."""

CHANGE = (
    _COMMON
    + """
local id, call, was_record, was_owner, record, owner, standing, left_ms, afresh = unpack(ARGV, 2)
local job = key('job', id)
local held = redis.call('HMGET', job, 'change', 'record', 'owner')
if held[1] == call then return 1 end
if (held[2] or '') ~= was_record or held[3] ~= was_owner then return 0 end
redis.call('HSET', job, 'change', call, 'record', record, 'owner', owner)
if afresh == '1' then redis.call('DEL', key('outcomes', id)) end
settle(id, standing, left_ms)
return 1
"""
)
"""Replace record and owner where they still are the expected ones."""

ADOPT = (
    _COMMON
    + """
local owner, call = ARGV[2], ARGV[3]

-- A lease that has more time left than it was given is one from before the server's clock was set back.
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
"""Give all open jobs whose owner has no lease to another. Gives their ids."""
