"""The changes that Redis makes atomically, as Lua scripts.

Keys, after the store's prefix:
    open            hash: id of each open job → its entry "STATE OWNER"
    job:ID          hash: spec, record, owner, retention_s, fingerprint, client, repeat (the full key below, or empty),
                    change and adoption (the calls that made the last ones)
    pictures:ID     the sets, as safetensors; deleted with an end after which they are not needed
    outcomes:ID     hash: INDEX → the outcome without its picture, INDEX:picture → the picture
    repeat:KEY      id of the job that the repeat key belongs to
    lease:OWNER     exists while the lease runs; its duration in milliseconds
    staged:CALL     pictures whose job is not stored yet
    held            hash: job:ID → "BYTES CLIENT" for each kept job, and the sums client:CLIENT and total
    checks          sorted set: id of each job in `held`, by the time at which it is looked at next, in milliseconds

A job that expires runs no script, so its bytes are subtracted by the first script that finds its check due. Open jobs
are checked too: keys may be deleted by hand, and older versions of this code do not write `held`.

redis-py sends a command again when the connection broke before the answer. So each call of a script has a name, and a
script that has run for it already returns the same result.
"""

_COMMON = """
local prefix = ARGV[1]
local open, held, checks = prefix .. 'open', prefix .. 'held', prefix .. 'checks'
local check_ms = 60000
local function key(kind, name) return prefix .. kind .. ':' .. name end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function held_bytes(field) return tonumber(redis.call('HGET', held, field) or 0) end

local function set_bytes(id, client, bytes)
  local field, before = 'job:' .. id, 0
  local entry = redis.call('HGET', held, field)
  if entry then before, client = string.match(entry, '^(%d+) (.*)$') end
  if bytes == 0 then
    redis.call('HDEL', held, field)
  else
    redis.call('HSET', held, field, string.format('%.0f %s', bytes, client))
  end
  for _, sum in ipairs({'total', 'client:' .. client}) do
    local change = string.format('%.0f', bytes - before)
    if redis.call('HINCRBY', held, sum, change) == 0 then redis.call('HDEL', held, sum) end
  end
end

-- A part of another type is damaged and counts nothing.
local function length(...)
  local bytes = redis.pcall(...)
  return type(bytes) == 'number' and bytes or 0
end

local function count_bytes(id)
  local job, outcomes = key('job', id), key('outcomes', id)
  local bytes = length('HSTRLEN', job, 'spec') + length('STRLEN', key('pictures', id))
  for _, field in ipairs(redis.pcall('HKEYS', outcomes)) do
    bytes = bytes + length('HSTRLEN', outcomes, field)
  end
  set_bytes(id, redis.call('HGET', job, 'client') or '', bytes)
end

local function subtract_expired()
  local now = now_ms()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', checks, '-inf', now)) do
    local left_ms = redis.call('PTTL', key('job', id))
    if left_ms == -2 then
      redis.call('ZREM', checks, id)
      set_bytes(id, '', 0)
    else
      redis.call('ZADD', checks, now + (left_ms == -1 and check_ms or left_ms), id)
    end
  end
end

-- Without open jobs, the counts expire with the last job.
local function check_in(id, left_ms)
  redis.call('ZADD', checks, now_ms() + left_ms, id)
  local last = redis.call('ZREVRANGE', checks, 0, 0, 'WITHSCORES')[2]
  for _, name in ipairs({held, checks}) do
    if redis.call('EXISTS', open) == 1 then
      redis.call('PERSIST', name)
    else
      redis.call('PEXPIREAT', name, last)
    end
  end
end

-- List an open job and keep it; any other expires in left_ms.
local function settle(id, entry, left_ms)
  local job = key('job', id)
  local names = {job, key('pictures', id), key('outcomes', id)}
  local repeated = redis.call('HGET', job, 'repeat')
  if repeated and repeated ~= '' then names[4] = repeated end
  if left_ms == '' then
    redis.call('HSET', open, id, entry)
    for _, name in ipairs(names) do redis.call('PERSIST', name) end
    check_in(id, check_ms)
  else
    redis.call('HDEL', open, id)
    for _, name in ipairs(names) do redis.call('PEXPIRE', name, left_ms) end
    check_in(id, left_ms)
  end
end
"""

ADD = (
    _COMMON
    + """
local staged, id, repeated, entry, left_ms, client, bytes, max_total, max_of_client = unpack(ARGV, 2, 10)
local known = id
if redis.call('EXISTS', key('job', id)) == 0 then
  known = repeated ~= '' and redis.call('GET', repeated)
end
if known and redis.call('EXISTS', key('job', known)) == 1 then
  redis.call('DEL', staged)
  return {known, redis.call('HGET', key('job', known), 'fingerprint'), '0', '0'}
end
subtract_expired()
local total, of_client = held_bytes('total') + bytes, held_bytes('client:' .. client) + bytes
if total > tonumber(max_total) or of_client > tonumber(max_of_client) then
  redis.call('DEL', staged)
  return {'', '', string.format('%.0f', total), string.format('%.0f', of_client)}
end
redis.call('RENAME', staged, key('pictures', id))
redis.call('HSET', key('job', id), 'repeat', repeated, unpack(ARGV, 11))
if repeated ~= '' then redis.call('SET', repeated, id) end
local fingerprint = redis.call('HGET', key('job', id), 'fingerprint')
count_bytes(id)
settle(id, entry, left_ms)
return {id, fingerprint, '0', '0'}
"""
)
"""Store a job of staged pictures and the fields that follow. Returns the id and the fingerprint of the stored job, and
two zeros. If the store would hold too much, returns two empty texts and the bytes in total and of the client."""

ADD_OUTCOME = (
    _COMMON
    + """
local id, waiting, running, index, rest, picture = unpack(ARGV, 2)
local entry = redis.call('HGET', open, id)
if entry ~= waiting and entry ~= running then return 0 end
redis.call('HSET', key('outcomes', id), index, rest, index .. ':picture', picture)
count_bytes(id)
return 1
"""
)
"""Store an outcome of a job whose entry is one of two. Returns whether it was stored."""

CHANGE = (
    _COMMON
    + """
local id, call, old_record, old_owner, record, owner, entry, left_ms, afresh, keeps = unpack(ARGV, 2)
local job = key('job', id)
local stored = redis.call('HMGET', job, 'change', 'record', 'owner')
if stored[1] == call then return 1 end
if (stored[2] or '') ~= old_record or stored[3] ~= old_owner then return 0 end
redis.call('HSET', job, 'change', call, 'record', record, 'owner', owner)
if afresh == '1' then redis.call('DEL', key('outcomes', id)) end
if keeps == '0' then redis.call('DEL', key('pictures', id)) end
count_bytes(id)
settle(id, entry, left_ms)
return 1
"""
)
"""Replace record and owner if they still are the expected ones, and delete outcomes or pictures that are not needed.
Returns whether they were."""

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

SWEEP = _COMMON + "subtract_expired()"
"""Subtract the bytes of expired jobs."""
