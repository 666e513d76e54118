-- For wrk: requests at an offered rate, over as many connections as there are. wrk itself sends as fast as it is
-- answered; here the n-th request of a thread is due n / rate seconds after the first one, and late ones go at once.
--     wrk -t1 -c200 -d60s -s offered.lua URL -- RATE QUESTIONS STREAM
-- QUESTIONS different ones take turns; 0: each is a new one. STREAM: 1 or 0.
local ffi = require("ffi")
ffi.cdef[[ typedef struct { long sec; long nsec; } timespec_t; int clock_gettime(int clock, timespec_t *time); ]]
local spec = ffi.new("timespec_t")
local function now() ffi.C.clock_gettime(1, spec); return tonumber(spec.sec) * 1e3 + tonumber(spec.nsec) / 1e6 end

local threads, first, number = {}, nil, 0
statuses = ""

function setup(thread) table.insert(threads, thread) end

function init(args)
  rate, questions, stream = tonumber(args[1]), tonumber(args[2]), args[3] == "1"
  run = tostring(now())
  counts = {}
  wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
end

function delay()
  first = first or now()
  due = (due or 0) + 1
  return math.max(0, first + due * 1000 / rate - now())
end

function request()
  number = number + 1
  local question = questions > 0 and ("question " .. number % questions) or (run .. " " .. number)
  local body = '{"model":"mock","temperature":0,"messages":[{"role":"user","content":"' .. question .. '"}]'
  return wrk.format(nil, nil, nil, body .. (stream and ',"stream":true}' or "}"))
end

function response(status)
  counts[status] = (counts[status] or 0) + 1
  statuses = ""
  for code, count in pairs(counts) do statuses = statuses .. '"' .. code .. '":' .. count .. "," end
end

function done(summary, latency)
  local e, all = summary.errors, {}
  for _, thread in ipairs(threads) do table.insert(all, thread:get("statuses")) end
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.3f,"p50":%.3f,"p99":%.3f,"max":%.3f,"lost":%d,"statuses":{%s}}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, e.connect + e.read + e.write + e.timeout, table.concat(all):sub(1, -2)))
end
