-- Stands before every script that uses it. The generation with which a model went online: live updates leave it.
local function went_online(text)
  local entry = cjson.decode(text)
  return tostring((entry.since or 0) > 0 and entry.since or entry.generation)
end
