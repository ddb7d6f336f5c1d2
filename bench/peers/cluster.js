// `node cluster.js rr|none WORKERS`: Node's own cluster. A dead worker is replaced, as its documentation shows.
const cluster = require("cluster");

if (cluster.isPrimary) {
  cluster.schedulingPolicy = process.argv[2] === "rr" ? cluster.SCHED_RR : cluster.SCHED_NONE;
  cluster.on("exit", (worker) => worker.exitedAfterDisconnect || cluster.fork());
  for (let i = 0; i < Number(process.argv[3]); i++) cluster.fork();
  process.on("SIGTERM", () => cluster.disconnect(() => process.exit(0)));
} else {
  require("./app.js");
}
