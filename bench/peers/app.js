// What Node serves: the answer of bench/workloads.py. PM2 runs it as it is, in cluster mode.
const http = require("http");

const ballast = (globalThis.ballast = []); // else it is collected
for (let mb = 0; mb < Number(process.env.BENCH_BALLAST_MB || 0); mb++) ballast.push(Buffer.alloc(1 << 20, mb & 255));
const waitsMs = { "/work": 1, "/slow": 100 };
const body = `${process.pid}\n`;

function answer(response) {
  response.writeHead(200, { "Content-Type": "text/plain", "Content-Length": body.length });
  response.end(body);
}

const server = http.createServer((request, response) => {
  const waitMs = request.url.startsWith("/wait/") ? Number(request.url.slice(6)) / 1000 : waitsMs[request.url];
  if (waitMs) setTimeout(answer, waitMs, response);
  else answer(response);
});
server.keepAliveTimeout = 75000;
process.on("SIGINT", () => server.close(() => process.exit(0))); // PM2's word for a graceful stop
server.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
