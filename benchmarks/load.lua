-- What wrk sends, in one thread: the lines of a file as bodies of POST, one after the other, from the beginning
-- again if there are not enough; or each at most once: it stops when so many are left, because connections that
-- are ready at that moment send one more. Event ids of the replies go to a file.
-- Arguments: file of bodies, "again" or how many to leave, file for event ids or "-".

local ffi = require("ffi")
ffi.cdef("struct time { long s, ns; }; int clock_gettime(int, struct time *);")
local time = ffi.new("struct time")
local function now()
  ffi.C.clock_gettime(1, time) -- monotonic
  return tonumber(time.s) + tonumber(time.ns) / 1e9
end

local requests, left, out = {}, nil, nil
sent, answered, first, last = 0, 0, 0, 0 -- global: `done` runs elsewhere and asks for them

local threads = {}
function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local headers = { ["Host"] = wrk.headers["Host"], ["Content-Type"] = "application/json" }
  for line in io.lines(args[1]) do
    table.insert(requests, wrk.format("POST", nil, headers, line))
  end
  left = tonumber(args[2])
  if args[3] ~= "-" then
    out = io.open(args[3], "w")
  end
end

function request()
  if sent == 0 then
    first = now()
    io.write("begun\n") -- from now on the slice lasts
    io.flush()
  end
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function response(status, headers, body)
  answered, last = answered + 1, now() -- wrk's own duration goes on when there is no more to send
  if out then
    local id = string.match(body, '"event_id": ?"([^"]+)"')
    if id then
      out:write(id, "\n")
    end
  end
  if left and sent >= #requests - left then
    wrk.thread:stop()
  end
end

function done(summary, latency, _)
  local thread, errors = threads[1], summary.errors
  io.write(string.format(
    '\nsummary {"answered": %d, "sent": %d, "seconds": %.6f, "refused": %d, "failed": %d}\n',
    thread:get("answered"), thread:get("sent"), thread:get("last") - thread:get("first"),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
