-- Requests in turn, for wrk: wrk … -s cookies.lua URL -- FILE METHOD FIRST COUNT THREADS
-- A line of FILE is a cookie, or with POST a body. Each thread has its own share of the lines from FIRST on. The requests
-- are written once, before the run.

local started = 0

function setup(thread)
  thread:set("number", started)
  started = started + 1
end

local requests, turn = {}, 0

function init(args)
  local file, method, first, count, threads = args[1], args[2], tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  local n = 0
  for line in io.lines(file) do
    if n >= first + count then break end
    if n >= first and n % threads == number then
      if method == "POST" then
        requests[#requests + 1] = wrk.format(method, nil, {["Host"] = wrk.headers["Host"], ["Content-Type"] = "application/json"}, line)
      else
        requests[#requests + 1] = wrk.format(method, nil, {["Host"] = wrk.headers["Host"], ["Cookie"] = "holdfast=" .. line})
      end
    end
    n = n + 1
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
